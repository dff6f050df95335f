package checkpoint

import (
	"context"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/shards"
)

// container is a format of weight files. A new one is a package that reads it and a row of
// containers. An output has the container of the base if that has a heading. Everything else sees
// each other file as the safetensors file that its tensors make, and outputs are safetensors.
type container struct {
	title string // names a file of it in messages: "this is …"

	// files lists the names of weight files in a directory, in the order in which transformers and
	// diffusers prefer them. Each may be sharded, with an index of the same name plus indexSuffix.
	files []string
	// extensions are the ends of the names of weight files, which the output replaces by
	// .safetensors. A name that begins with stem begins with "model" instead.
	extensions []string
	stem       string // "" for none

	// is recognises a file by its first bytes; it is nil for safetensors.
	is func(start []byte) bool
	// open reads the header of a file. A container that outputs cannot have has read instead, which
	// reads its list of tensors.
	open func(ctx context.Context, in *fileio.Input, f *File) (*File, error)
	read func(r io.ReaderAt, size int64) (contents, error)
}

const indexSuffix = shards.IndexSuffix

// containers are tried in this order in a directory. It uses the first one that it has weights of.
var containers = []container{
	{
		title: "a safetensors file",
		open:  openSafetensors,
		files: []string{
			"model.safetensors", "diffusion_pytorch_model.safetensors",
			"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors",
		},
	},
	{
		title: "a pickle of torch.save",
		files: []string{
			"pytorch_model.bin", "diffusion_pytorch_model.bin",
			"diffusion_pytorch_model.fp16.bin", "pytorch_model.fp16.bin",
		},
		extensions: []string{".bin", ".pt", ".pth", ".ckpt"},
		stem:       "pytorch_model",
		is:         pickle.IsPickle,
		read:       func(r io.ReaderAt, size int64) (contents, error) { return pickle.ReadBase(r, size) },
	},
	{title: "a GGUF file", is: isGGUF, open: openGGUF},
}

// lists returns the files in a folder of a directory that hold a whole model or are the index of
// its shards, the preferred one first.
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

// isWeights reports whether a file may hold the weights of a model, by its name.
func isWeights(name string) bool {
	return slices.ContainsFunc(containers, func(k container) bool { return slices.Contains(k.files, name) })
}

// shownName returns the name that the output gives to a weight file or an index of a directory.
func shownName(name string) string {
	name, isIndex := strings.CutSuffix(name, indexSuffix)
	dir, file := path.Split(name)
	for i := range containers {
		k := &containers[i]
		ext := path.Ext(file)
		if !slices.Contains(k.extensions, ext) {
			continue
		}
		file = strings.TrimSuffix(file, ext) + ".safetensors"
		if rest, ok := strings.CutPrefix(file, k.stem); ok && k.stem != "" {
			file = "model" + rest
		}
		break
	}
	if isIndex {
		file += indexSuffix
	}
	return dir + file
}

// containerOf recognises a file by its content, whatever its name is. It takes a file of no
// container for safetensors, whose reader knows how to explain it.
func containerOf(in *fileio.Input) (*container, error) {
	start := make([]byte, min(in.Size, 16))
	if _, err := io.ReadFull(io.NewSectionReader(in, 0, in.Size), start); err != nil {
		return nil, err
	}
	for i := range containers {
		if is := containers[i].is; is != nil && is(start) && !safetensors.IsHeader(start) {
			return &containers[i], nil
		}
	}
	return &containers[0], nil
}

// contents is an open weight file of another container than safetensors. The package that reads the
// container implements it without knowing this one.
type contents interface {
	// Len returns the number of tensors.
	Len() int
	// Tensor describes tensor i. No two tensors have the same name.
	Tensor(i int) (name string, d dtype.Type, shape []uint64)
	// ReadAt fills p with the values of tensor i from byte offset off, little-endian and row-major.
	// Several goroutines may call it at once.
	ReadAt(p []byte, i int, off int64) error
	// Notes returns remarks for the user about the file.
	Notes() []string
}
