package checkpoint

import (
	"cmp"
	"context"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// container is a format of weight files. A new one is a package that reads it and a row of
// containers.
type container struct {
	// files lists the names of weight files in a directory, in the order in which transformers and
	// diffusers prefer them. Each may be sharded, with an index of the same name plus indexSuffix.
	files []string
	// open completes f, whose bytes are in, with the tensors in it.
	open func(ctx context.Context, in *fileio.Input, f *File) (*File, error)
}

// indexSuffix is the end of the name of an index of shards, after the name that the one file would
// have.
const indexSuffix = ".index.json"

// containers are tried in this order in a directory. It uses the first one that it has weights of.
var containers = []container{
	{
		files: []string{
			"model.safetensors", "diffusion_pytorch_model.safetensors",
			"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors",
		},
		open: openSafetensors,
	},
}

// lists returns the files in a folder of a directory that hold a whole model or are the index of its
// shards, the preferred one first.
func (k *container) lists(have map[string]bool, folder string) (found []string) {
	for _, name := range k.files {
		for _, list := range []string{name, name + indexSuffix} {
			if have[folder+list] {
				found = append(found, list)
			}
		}
	}
	return found
}

// openSafetensors reads the header of a safetensors file.
func openSafetensors(ctx context.Context, in *fileio.Input, f *File) (*File, error) {
	h, err := safetensors.Read(ctx, in, in.Size)
	if err != nil {
		return nil, err
	}
	return newFile(h, f), nil
}

// openFile opens a file, and puts prefix in front of the names of its tensors. On an error it closes
// the file.
func openFile(ctx context.Context, name, prefix string, in *fileio.Input) (*File, error) {
	f := &File{Name: name, Path: in.Path, prefix: prefix, Size: in.Size, data: stored{in.ReaderAt}, close: in.Close}
	f, err := containers[0].open(ctx, in, f)
	if err != nil {
		err = cmp.Or(pickled(in), err)
		in.Close()
		return nil, fault.InFile(err, in.Path)
	}
	return f, nil
}
