package format

import "context"

// Sink is where an adapter can be written to, whatever it is stored in there.
type Sink interface {
	// Store writes all of src, or returns an error. It reads every tensor and attachment once.
	Store(ctx context.Context, src Source) error
}

// Copy writes src to dst. Before dst sees it, the description of src is proven by the rules that a
// .lora file has to keep (spec section 7), so that a Sink can rely on them.
func Copy(ctx context.Context, dst Sink, src Source) error {
	if _, _, err := arrange(src.Manifest()); err != nil {
		return err
	}
	return dst.Store(ctx, src)
}
