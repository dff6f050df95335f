package convert

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/safetensors"
)

const (
	// maxSideBytes bounds the configuration and the model card, which are held in memory.
	maxSideBytes = 16 << 20
	// maxAttachmentBytes bounds an attachment that is held in memory: a header of safetensors is
	// the largest, R67 of spec/FORMAT.md.
	maxAttachmentBytes = 8 + safetensors.MaxHeaderBytes
	maxNameBytes       = format.MaxNameBytes
	maxRank            = format.MaxRank
)
