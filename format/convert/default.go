package convert

import (
	"context"
	"io"
	"io/fs"

	"github.com/loratool/loratool/format"
)

// Default returns the dialects of this package: .lora files, GGUF, MLX, PEFT, those of image and
// video models, and those that are only read.
func Default() Dialects {
	return Dialects{
		LoRA(), GGUF(), MLX(), PEFT(), Kohya(), Diffusers(), ComfyUI(), XLabs(), Cloneofsimo(), LoRALib(), Megatron(),
		Torchtune(), MistralFinetune(),
	}
}

// Open opens an adapter in a dialect of Default; see Dialects.Open.
func Open(ctx context.Context, path string, o Options) (format.Source, error) {
	return Default().Open(ctx, path, o)
}

// OpenFS opens an adapter in a dialect of Default; see Dialects.OpenFS.
func OpenFS(ctx context.Context, files fs.FS, name string, o Options) (format.Source, error) {
	return Default().OpenFS(ctx, files, name, o)
}

// OpenReader opens an adapter in a dialect of Default; see Dialects.OpenReader.
func OpenReader(ctx context.Context, r io.ReaderAt, size int64, o Options) (format.Source, error) {
	return Default().OpenReader(ctx, r, size, o)
}

// IsAdapter reports whether path holds an adapter; see Dialects.IsAdapter.
func IsAdapter(ctx context.Context, path string) bool { return Default().IsAdapter(ctx, path) }

// OpenDigested is Open for a source that will be converted to a .lora file. It reads the whole
// source file once to record its digest, so that restoring the file from the container can be
// checked.
func OpenDigested(ctx context.Context, path string, o Options) (format.Source, error) {
	return Default().OpenDigested(ctx, path, o)
}

// DialectFor returns the dialect of Default for an output; see Dialects.For.
func DialectFor(path string) (Dialect, error) { return Default().For(path) }
