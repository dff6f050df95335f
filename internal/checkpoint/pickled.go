package checkpoint

import (
	"errors"
	"io"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/pickle"
)

// pickled returns the error for weights that torch.save wrote, and nil for all other files. It
// reads the names of the tensors, to tell the pickle of a model from that of an adapter.
func pickled(in *fileio.Input) error {
	start := make([]byte, min(in.Size, 4))
	if _, err := io.ReadFull(io.NewSectionReader(in, 0, in.Size), start); err != nil {
		return nil // reading the header has failed, too
	}
	if !pickle.IsPickle(start) {
		return nil
	}
	var keys []string
	f, err := pickle.Read(in, in.Size)
	if layout := (*pickle.LayoutError)(nil); errors.As(err, &layout) {
		keys = layout.Keys
	} else if err == nil {
		for i := range f.Tensors {
			keys = append(keys, f.Tensors[i].Name)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	if naming.AreOfAdapter(keys) {
		e := fault.New(fault.Unsupported, "this is a pickle of torch.save that holds an adapter, with tensors such as %q, not a checkpoint", keys[0])
		e.Misplaced = true
		return e.WithHint("this is an adapter")
	}
	return fault.New(fault.Unsupported, "this is a pickle of torch.save with %s, such as %q; a checkpoint is read from safetensors files only", fault.Count(len(keys), "tensor"), keys[0]).
		WithHint("load the model in transformers or diffusers and save it: model.save_pretrained(DIR) writes safetensors")
}
