package gguf

import "github.com/loratool/loratool/internal/ggml"

// Type is a type of tensors.
type Type = ggml.Type

// The float types, whose values need no decoder, and the type of blocks that adapters have.
const (
	F32  = ggml.F32
	F16  = ggml.F16
	Q8_0 = ggml.Q8_0
	F64  = ggml.F64
	BF16 = ggml.BF16
)
