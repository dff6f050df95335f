package checkpoint

import (
	"cmp"
	"context"
	"maps"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// safetensorsHeading is the header of a safetensors file.
type safetensorsHeading struct{ *safetensors.Header }

// openSafetensors reads a safetensors file.
func openSafetensors(ctx context.Context, in *fileio.Input, f *File) (*File, error) {
	h, err := safetensors.Read(ctx, in, in.Size)
	if err != nil {
		return nil, err
	}
	return newFile(safetensorsHeading{h}, h.DataOff, tensorsOf(h), f), nil
}

func (h safetensorsHeading) texts() map[string]string { return h.Metadata }

func (h safetensorsHeading) with(raw []byte, key, text string) ([]byte, error) {
	return h.WithMetadata(raw, key, text), nil
}

func (h safetensorsHeading) without(raw []byte, key string) ([]byte, error) {
	return h.WithoutMetadata(raw, key), nil
}

func (h safetensorsHeading) compose(tensors []Tensor) (raw []byte, _ heading, end int64, err error) {
	list := make([]safetensors.Tensor, len(tensors))
	for i := range tensors {
		t := &tensors[i]
		list[i] = safetensors.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, NBytes: t.NBytes}
	}
	metadata := withoutTypes(h.Metadata, list)
	composed, err := safetensors.Describe(list, metadata)
	if err != nil {
		return nil, nil, 0, err
	}
	raw, end = safetensors.Compose(list, metadata), composed.DataOff
	for i, t := range composed.Tensors {
		tensors[i].Off = t.Off
		end = t.Off + t.NBytes
	}
	composed.Tensors = nil
	return raw, safetensorsHeading{composed}, end, nil
}

// withoutTypes returns the metadata of a file in which torchao described tensors that are plain
// now, by their names. It calls plain tensors so.
func withoutTypes(metadata map[string]string, tensors []safetensors.Tensor) map[string]string {
	isCopy := false
	for i := range tensors {
		name := tensors[i].Name
		if text, ok := metadata[name]; !ok || !strings.HasPrefix(text, `{"_type"`) {
			continue
		}
		if !isCopy {
			metadata, isCopy = maps.Clone(metadata), true
		}
		metadata[name] = `{"_type": "Tensor"}`
	}
	return metadata
}

// compare puts wider elements first.
func (safetensorsHeading) compare(a, b dtype.Type) int { return cmp.Compare(b.Bits(), a.Bits()) }

// parseSafetensors reads a header on its own. The offsets of the tensors are those in the data.
func parseSafetensors(raw []byte) (heading, []Tensor, error) {
	h, err := safetensors.ReadAlone(raw)
	if err != nil {
		return nil, nil, err
	}
	for i := range h.Tensors {
		h.Tensors[i].Off -= h.DataOff
	}
	return safetensorsHeading{h}, tensorsOf(h), nil
}

// tensorsOf takes the tensors of a header.
func tensorsOf(h *safetensors.Header) []Tensor {
	all := make([]Tensor, len(h.Tensors))
	for i, t := range h.Tensors {
		all[i] = Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Off: t.Off, NBytes: t.NBytes}
	}
	h.Tensors = nil
	return all
}
