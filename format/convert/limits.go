package convert

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/safetensors"
)

const (
	// maxSideBytes bounds the configuration and the model card, which are read into memory.
	maxSideBytes = 16 << 20
	// maxAttachmentBytes bounds an attachment that is read into memory. The largest kind is the
	// header of a safetensors file (R67 of spec/FORMAT.md).
	maxAttachmentBytes = 8 + safetensors.MaxHeaderBytes
	maxNameBytes       = format.MaxNameBytes
	maxRank            = format.MaxRank
)
