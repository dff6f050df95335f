package convert

import (
	"context"
	"io"
	"io/fs"

	"github.com/loratool/loratool/format"
)

// Default is the set of the dialects of this package.
func Default() Dialects { return Dialects{LoRA(), PEFT()} }

// Open opens an adapter in one of the dialects of Default; see Dialects.Open.
func Open(ctx context.Context, path string, o Options) (format.Source, error) {
	return Default().Open(ctx, path, o)
}

// OpenFS opens an adapter in one of the dialects of Default; see Dialects.OpenFS.
func OpenFS(ctx context.Context, files fs.FS, name string, o Options) (format.Source, error) {
	return Default().OpenFS(ctx, files, name, o)
}

// OpenReader opens an adapter in one of the dialects of Default; see Dialects.OpenReader.
func OpenReader(ctx context.Context, r io.ReaderAt, size int64, o Options) (format.Source, error) {
	return Default().OpenReader(ctx, r, size, o)
}

// IsAdapter is that of Default.
func IsAdapter(ctx context.Context, path string) bool { return Default().IsAdapter(ctx, path) }

// OpenDigested is Open for a source that will be converted: it reads a file that a container is to
// restore once, to record its digest.
func OpenDigested(ctx context.Context, path string, o Options) (format.Source, error) {
	return Default().OpenDigested(ctx, path, o)
}

// DialectFor is that of Default; see Dialects.For.
func DialectFor(path string) (Dialect, error) { return Default().For(path) }
