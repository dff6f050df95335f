package convert

import (
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
)

// WithHeads returns a source whose factors have the rows of attention heads in the order of
// transformers, where src has them in the order of llama.cpp (format.FeatureRotaryPairs, and
// format.FeatureRotaryByModel for some models). The config.json of the base says how many rows a
// head has, and which model it is. Other sources are returned as they are.
// The new source owns src: close it instead of src.
func WithHeads(src format.Source, baseConfig []byte) (format.Source, error) {
	m := *src.Manifest()
	if len(m.Adapters) != 1 || !slices.ContainsFunc(m.Adapters[0].Requires, format.Requirement.IsOfRows) {
		return src, nil
	}
	base, err := config.Parse(baseConfig)
	if err != nil {
		return nil, err
	}
	h := &straightened{Source: src, manifest: &m, heads: make(map[int]int64)}
	m.Adapters = slices.Clone(m.Adapters)
	a := &m.Adapters[0]
	for _, l := range a.Layers {
		if isTurned, err := isInPairs(a, l.Module, base.ModelType); err != nil {
			return nil, err
		} else if !isTurned {
			continue
		}
		i, size := l.Roles[format.RoleB], base.HeadSize
		if n := m.Tensors[i].Shape[0]; size == 0 || size%2 != 0 || n%size != 0 {
			return nil, fault.New(fault.Mismatch, "%q: B has %d rows, and the base's config.json says that an attention head has %d",
				l.Module, n, size).WithHint("name the base that the adapter was trained on")
		}
		h.heads[i] = int64(size)
	}
	a.Requires = slices.DeleteFunc(slices.Clone(a.Requires), format.Requirement.IsOfRows)
	return h, nil
}

// isInPairs reports whether B of a layer has its rows in the order of llama.cpp.
func isInPairs(a *format.Adapter, module, modelType string) (bool, error) {
	requires := func(f format.Feature) bool {
		return slices.Contains(a.Requires, format.Requirement{Feature: f, Where: module})
	}
	if !requires(format.FeatureRotaryByModel) {
		return requires(format.FeatureRotaryPairs), nil
	}
	has, ok := naming.HasPairsInTorchtune(modelType)
	if !ok {
		return false, fault.New(fault.Unsupported, "%q has the rows of each attention head in an order that depends "+
			"on the type of the model, and torchtune trains none of the type %q", module, modelType).
			WithHint("name the base, whose config.json says its type (CreateOptions.Base)")
	}
	return has, nil
}

// straightened is a source with some rows in another order.
type straightened struct {
	format.Source
	manifest *format.Manifest
	heads    map[int]int64 // rows of a head, by tensor
}

func (h *straightened) Manifest() *format.Manifest { return h.manifest }

func (h *straightened) Unchanged() error { return fileio.Unchanged(h.Source) }

func (h *straightened) ReadBlobAt(p []byte, i int, off int64) error {
	size, ok := h.heads[i]
	if !ok {
		return h.Source.ReadBlobAt(p, i, off)
	}
	t := &h.manifest.Tensors[i]
	line := int64(t.DType.Size()) * int64(t.Shape[1])
	for len(p) > 0 {
		row, within := off/line, off%line
		n := min(line-within, int64(len(p)))
		place := row % size
		from := row - place + 2*(place%(size/2)) + place/(size/2)
		if err := h.Source.ReadBlobAt(p[:n], i, from*line+within); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
