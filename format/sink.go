package format

import "context"

// Sink is a place to write an adapter to, in any storage.
type Sink interface {
	// Store writes all of src, or returns an error. It reads every tensor and attachment once.
	Store(ctx context.Context, src Source) error
}

// Copy writes src to dst. It first checks the manifest of src by the rules for a .lora file (spec
// section 7), so a Sink need not.
func Copy(ctx context.Context, dst Sink, src Source) error {
	if _, err := checked(src.Manifest()); err != nil {
		return err
	}
	return dst.Store(ctx, src)
}
