package rank_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

const lycoris = "../testdata/lycoris"

// lycorisCase is a case of testdata/lycoris/index.json.
type lycorisCase struct {
	Name     string   `json:"name"`
	Base     string   `json:"base"`
	Adapters []string `json:"adapters"`
	Merged   string   `json:"merged"`
}

func lycorisCases(t *testing.T) []lycorisCase {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lycoris, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Cases []lycorisCase }
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	return index.Cases
}

func (c *lycorisCase) open(t *testing.T) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), filepath.Join(lycoris, c.Adapters[0]), convert.Options{})
	if err != nil {
		t.Fatal(c.Name, err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// base lists the tensors of the case's base.
func (c *lycorisCase) base(t *testing.T) []format.Tensor {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(lycoris, c.Base))
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(t.Context(), bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return f.Tensors()
}

// merged merges an adapter into the case's base.
func (c *lycorisCase) merged(t *testing.T, src format.Source) []byte {
	t.Helper()
	p, err := merge.Open(t.Context(), filepath.Join(lycoris, c.Base), []merge.Adapter{{Source: src, Name: c.Name, Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(c.Name, err)
	}
	defer p.Close()
	var out output.Memory
	if _, err := p.RunTo(t.Context(), &out); err != nil {
		t.Fatal(c.Name, err)
	}
	content := out.Files()[""]
	return content[8+int(content[0])+int(content[1])<<8+int(content[2])<<16:] // the stamp names another adapter
}

// TestLoRAByIdentityIsTheSameUpdate: the factors of an identity merge to the very bytes of the
// method, in F64 where those of F32 cannot be exact.
func TestLoRAByIdentityIsTheSameUpdate(t *testing.T) {
	identities, refused, scalings := 0, 0, 0
	for _, c := range lycorisCases(t) {
		src := c.open(t)
		made, report, err := rank.ToLoRA(t.Context(), src, rank.LoRAOptions{DType: dtype.F64, Base: c.base(t)})
		switch {
		case err != nil && strings.Contains(err.Error(), "takes more numbers than its weight"):
			refused++
			continue
		case err != nil && strings.Contains(err.Error(), "IA³"):
			scalings++
			continue
		case err != nil:
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		defer made.Close()
		for _, l := range report.Layers {
			identities++
			if !l.IsExact && l.Error > 1e-11 {
				t.Errorf("%s: %s has the error %g", c.Name, l.Module, l.Error)
			}
		}
		for _, l := range made.Manifest().Adapters[0].Layers {
			if l.Kind != format.Linear && l.Kind != format.Conv {
				t.Errorf("%s: %s is of kind %s", c.Name, l.Module, l.Kind)
			}
		}
		if !bytes.Equal(c.merged(t, made), c.merged(t, src)) {
			t.Errorf("%s: the LoRA merges to other bytes", c.Name)
		}
		if len(report.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.Name, report.Warnings)
		}
	}
	if identities < 20 || refused == 0 || scalings < 3 {
		t.Errorf("%d layers by identity, %d and %d files refused", identities, refused, scalings)
	}
}

// TestLoRAByTruncationKeepsItsError measures ‖ΔW − s·B·A‖ against ΔW by LyCORIS: the merged weight
// in float64 less the base.
func TestLoRAByTruncationKeepsItsError(t *testing.T) {
	layers, truncated := 0, 0
	for i, c := range lycorisCases(t) {
		src := c.open(t)
		d := []dtype.Type{dtype.F32, dtype.F16, dtype.BF16}[i%3]
		// An identity of few ranks is stored whole; rounding it to BF16 costs less than 0.4 %.
		rule := []rank.Rule{rank.MaxError(0.2, 0), rank.FixedRank{K: 5}}[i%2]
		made, report, err := rank.ToLoRA(t.Context(), src, rank.LoRAOptions{Rule: rule, DType: d, Base: c.base(t)})
		if err != nil {
			if !strings.Contains(err.Error(), "IA³") && !strings.Contains(err.Error(), "beside its LoRA") {
				t.Errorf("%s: %v", c.Name, err)
			}
			continue
		}
		defer made.Close()
		if len(made.Manifest().Adapters[0].Requires) > 0 && strings.HasPrefix(c.Name, "do") {
			continue // ΔW of DoRA is not what the merge adds
		}
		for _, l := range report.Layers {
			layers++
			if l.Error > 0.2 && i%2 == 0 {
				t.Errorf("%s: %s has the error %v", c.Name, l.Module, l.Error)
			}
			if !l.IsExact {
				truncated++
			}
			want, got := exactUpdate(t, src, l.Module), productOf(t, made, l.Module)
			var lost, all float64
			for i := range want {
				lost, all = lost+(want[i]-got[i])*(want[i]-got[i]), all+want[i]*want[i]
			}
			if e := math.Sqrt(lost / all); e > l.Error*(1+1e-5)+1e-12 || e < l.Error*0.999-1e-7 {
				t.Errorf("%s: %s has the error %v, and %v is reported", c.Name, l.Module, e, l.Error)
			}
		}
	}
	if layers < 40 || truncated < 20 {
		t.Errorf("%d layers, %d of them truncated", layers, truncated)
	}
}

// exactUpdate is s·ΔW of a layer by the F64 factors of its identity, or of the difference itself.
func exactUpdate(t *testing.T, src format.Source, module string) []float64 {
	t.Helper()
	m := src.Manifest()
	for _, b := range m.Adapters[0].Beside {
		if b.Target == module+".weight" {
			x, err := format.ReadFloats(t.Context(), src, b.Tensor)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
	}
	for _, l := range m.Adapters[0].Layers {
		if l.Module == module {
			return updateByFormula(t, src, &l)
		}
	}
	t.Fatalf("no layer %s", module)
	return nil
}

// productOf is s·B·A of a layer.
func productOf(t *testing.T, src format.Source, module string) []float64 {
	t.Helper()
	for _, l := range src.Manifest().Adapters[0].Layers {
		if l.Module == module {
			b, a := floats(t, src, &l, format.RoleB), floats(t, src, &l, format.RoleA)
			return scaled(product(b, a, l.Rank), l.Scale())
		}
	}
	t.Fatalf("no layer %s", module)
	return nil
}

func floats(t *testing.T, src format.Source, l *format.Layer, role format.Role) []float64 {
	t.Helper()
	i, ok := l.Roles[role]
	if !ok {
		return nil
	}
	x, err := format.ReadFloats(t.Context(), src, i)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func scaled(x []float64, s float64) []float64 {
	for i := range x {
		x[i] *= s
	}
	return x
}

// product is B·A with rank r.
func product(b, a []float64, r int) []float64 {
	m, n := len(b)/r, len(a)/r
	out := make([]float64, m*n)
	for i := range m {
		for k := range r {
			for j := range n {
				out[i*n+j] += b[i*r+k] * a[k*n+j]
			}
		}
	}
	return out
}

// updateByFormula is s·ΔW by the formulas of spec/METHODS.md, in plain loops.
func updateByFormula(t *testing.T, src format.Source, l *format.Layer) []float64 {
	t.Helper()
	r, get := l.Rank, func(role format.Role) []float64 { return floats(t, src, l, role) }
	shape := func(role format.Role) []uint64 { return src.Manifest().Tensors[l.Roles[role]].Shape }
	// core is Σ a[x, i]·t[x, y, k]·b[y, j].
	core := func(a, c, b []float64) []float64 {
		m, n, kernel := len(a)/r, len(b)/r, len(c)/r/r
		out := make([]float64, m*n*kernel)
		for i := range m {
			for j := range n {
				for k := range kernel {
					for x := range r {
						for y := range r {
							out[(i*n+j)*kernel+k] += a[x*m+i] * c[(x*r+y)*kernel+k] * b[y*n+j]
						}
					}
				}
			}
		}
		return out
	}
	matrix := func(a, b, c format.Role) []float64 {
		if x := get(c); x != nil {
			return core(get(a), x, get(b))
		}
		return product(get(a), get(b), r)
	}
	switch l.Kind {
	case format.Conv:
		b := get(format.RoleB)
		flipped := make([]float64, len(b))
		for i := range len(b) / r {
			for x := range r {
				flipped[x*(len(b)/r)+i] = b[i*r+x]
			}
		}
		return scaled(core(flipped, get(format.RoleCore), get(format.RoleA)), l.Scale())
	case format.Hadamard:
		p, q := matrix(format.RoleW1A, format.RoleW1B, format.RoleT1), matrix(format.RoleW2A, format.RoleW2B, format.RoleT2)
		for i := range p {
			p[i] *= q[i]
		}
		return scaled(p, l.Scale())
	}
	u, o := get(format.RoleW1), 0
	if u != nil {
		o = int(shape(format.RoleW1)[0])
	} else {
		u, o = matrix(format.RoleW1A, format.RoleW1B, ""), int(shape(format.RoleW1A)[0])
	}
	v, p := get(format.RoleW2), 0
	switch {
	case v != nil:
		p = int(shape(format.RoleW2)[0])
	case get(format.RoleT2) != nil:
		v, p = matrix(format.RoleW2A, format.RoleW2B, format.RoleT2), int(shape(format.RoleW2A)[1])
	default:
		v, p = matrix(format.RoleW2A, format.RoleW2B, ""), int(shape(format.RoleW2A)[0])
	}
	i1, n2 := len(u)/o, len(v)/p
	out := make([]float64, o*p*i1*n2)
	for a := range o {
		for b := range p {
			for c := range i1 {
				for d := range n2 {
					out[(a*p+b)*i1*n2+c*n2+d] = u[a*i1+c] * v[b*n2+d]
				}
			}
		}
	}
	return scaled(out, l.Scale())
}

// TestLoRAOfNothingIsRefused: a difference without elements has no factors. A base can have a
// weight of one dimension where the adapter has one column.
func TestLoRAOfNothingIsRefused(t *testing.T) {
	for _, shape := range [][]uint64{{4, 0}, {0, 4}} {
		x := format.NewBuilder("")
		x.Difference("m.weight", format.Float32s(nil, shape...))
		src, err := x.Source()
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range []rank.Rule{nil, rank.FixedRank{K: 1}} {
			if _, _, err := rank.ToLoRA(t.Context(), src, rank.LoRAOptions{Rule: rule}); err == nil {
				t.Errorf("a difference of shape %d became a LoRA", shape)
			}
		}
	}
	x := format.NewBuilder("")
	x.Difference("transformer.m.weight", format.Float32s(make([]float32, 4), 4, 1))
	src, err := x.Source()
	if err != nil {
		t.Fatal(err)
	}
	base := []format.Tensor{{Name: "transformer.m.weight", DType: dtype.F32, Shape: []uint64{4}}}
	made, _, err := rank.ToLoRA(t.Context(), src, rank.LoRAOptions{Rule: rank.FixedRank{K: 1}, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
}
