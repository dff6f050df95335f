package convert

import (
	"encoding/json"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// makeTensors lists the tensors of the file.
func (s *served) makeTensors() error {
	for _, l := range s.layers {
		if l.experts > 0 && !s.pack {
			s.addExperts(l)
			continue
		}
		for _, role := range []format.Role{format.RoleA, format.RoleB} {
			tail, _ := peftTail(l.kind, role)
			f := l.factors[role]
			s.add(l.name+"."+tail, f, f.shape, nil)
		}
	}
	sort.Slice(s.tensors, func(i, j int) bool { return s.tensors[i].Name < s.tensors[j].Name })
	for i := range s.tensors {
		if i > 0 && s.tensors[i].Name == s.tensors[i-1].Name {
			return fault.New(fault.Unsupported, "two layers would be written as %q", s.tensors[i].Name)
		}
	}
	return nil
}

func (s *served) add(name string, f *factor, shape []uint64, part *expertPart) {
	if s.names != nil && s.names.around != "" {
		name = strings.ReplaceAll(name, ".mlp.", s.names.around)
	}
	t := format.Tensor{Name: peftPrefix + name, DType: f.dtype, Shape: shape}
	s.tensors = append(s.tensors, servedTensor{t, f, part})
}

// config returns the configuration.
func (s *served) config() ([]byte, error) {
	c := &peftConfigOut{
		AlphaPattern: map[string]float64{}, RankPattern: map[string]int{}, Bias: "none", Inference: true,
		Type: "LORA", R: s.rank, Alpha: float64(s.rank), FanInFanOut: s.a.Orientation == format.NxM,
	}
	if s.a.Base.Name != "" {
		c.Base = &s.a.Base.Name
	}
	if s.a.Base.Revision != "" {
		c.Revision = &s.a.Base.Revision
	}
	if s.pack {
		c.Parameters, c.Version = s.parameters(), expertLayout
	}
	for i := range s.tensors {
		key := parsePEFTKey(s.tensors[i].Name)
		if module, depth := naming.CutNesting(key.module); s.pack && (depth > 0 || naming.IsExperts(module)) {
			continue // target_parameters names them
		}
		if leaf := naming.Leaf(key.module); !slices.Contains(c.Targets.names, leaf) {
			c.Targets.names = append(c.Targets.names, leaf)
		}
	}
	slices.Sort(c.Targets.names)
	was, err := attachment(s.src, format.PEFTConfig)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if jsontext.Decode(was, &fields) == nil {
		jsontext.Decode(fields["task_type"], &c.Task) // another type than a string leaves it null
	}
	text, err := json.MarshalIndent(c, "", "  ")
	return append(text, '\n'), err
}

// cachedFactor is the content of a factor.
type cachedFactor struct {
	factor  *factor
	content []byte
}

// servedBytes bounds the memory for the factors of a file for a server: they are padded, and F16
// and BF16 may become F32.
func servedBytes(m *format.Manifest) (largest int64) {
	rank := 1
	for i := range m.Adapters[0].Layers {
		rank = max(rank, m.Adapters[0].Layers[i].Rank)
	}
	for i := range m.Adapters[0].Layers {
		l := &m.Adapters[0].Layers[i]
		for _, t := range l.Roles {
			largest = max(largest, m.Tensors[t].NBytes()/int64(l.Rank)*int64(rank))
		}
	}
	return 2 * (nCached + 2) * largest
}

// nCached is the number of factors kept in memory: those of one module of stacked experts.
const nCached = 4

// contentOf returns the content of a factor.
func (s *served) contentOf(f *factor) ([]byte, error) {
	for _, c := range s.cache {
		if c.factor == f {
			return c.content, nil
		}
	}
	if len(s.cache) == nCached {
		s.cache = s.cache[1:]
	}
	content, err := f.content(s.ctx, s.src)
	if err == nil {
		s.cache = append(s.cache, cachedFactor{f, content})
	}
	return content, err
}

// read fills p with the bytes of tensor i of the file from offset off.
func (s *served) read(p []byte, i int, off int64) error {
	t := &s.tensors[i]
	if t.part == nil && t.factor.isWhole(s.m) {
		return s.src.ReadBlobAt(p, t.factor.blocks[0].tensor, off)
	}
	content, err := s.contentOf(t.factor)
	switch {
	case err != nil:
		return err
	case t.part == nil:
		copy(p, content[off:])
	default:
		copy(p, t.part.cut(content, t)[off:])
	}
	return nil
}

// cut returns the part of a factor's content.
func (x *expertPart) cut(content []byte, t *servedTensor) []byte {
	size := t.DType.Size()
	rows, cols, width := int(t.Shape[0]), int(t.Shape[1]), int(t.factor.shape[1])
	out := make([]byte, 0, rows*cols*size)
	for row := range rows {
		for col := range cols {
			at := ((x.row+row)*width + x.col + col*x.step) * size
			out = append(out, content[at:at+size]...)
		}
	}
	return out
}
