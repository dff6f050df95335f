package merge_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// quantisedFixture is a fixture of testdata/quant with one matrix.
type quantisedFixture struct {
	dir, weight string
	shape       []uint64
	parts       []string // the codes first
	config      []byte   // config.json
}

// quantisedFixtures lists those of testdata/quant that a merge decodes.
func quantisedFixtures(t *testing.T) (all []quantisedFixture) {
	t.Helper()
	paths, err := filepath.Glob(quantFixtures + "*/truth.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		dir := filepath.Dir(path)
		c := openModel(t, dir)
		if found := checkpoint.QuantisedOf(c); len(found) == 1 {
			ref, _ := c.Lookup(found[0].Name)
			config, _ := os.ReadFile(filepath.Join(dir, "config.json")) // some have none
			if len(ref.Tensor.Shape) != 2 {
				c.Close()
				continue
			}
			all = append(all, quantisedFixture{dir, found[0].Name, ref.Tensor.Shape, found[0].Parts, config})
		}
		c.Close()
	}
	if len(all) < 10 {
		t.Fatalf("%d fixtures of one matrix", len(all))
	}
	return all
}

// write writes the tensors of a fixture with its configuration.
func (f *quantisedFixture) write(t *testing.T, tensors map[string]testkit.Tensor) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var list []testkit.Tensor
	for _, x := range tensors {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b testkit.Tensor) int { return strings.Compare(a.Name, b.Name) })
	testkit.Write(t, filepath.Join(dir, "model.safetensors"), testkit.Encode(nil, list...))
	if f.config != nil {
		testkit.Write(t, filepath.Join(dir, "config.json"), f.config)
	}
	return dir
}

// tryMerge merges an adapter of the weight into memory.
func (f *quantisedFixture) tryMerge(t *testing.T, base string, options merge.Options) (*merge.Report, *output.Memory, error) {
	t.Helper()
	adapter, _, _ := adapterFor(t, rand.New(rand.NewPCG(61, 62)), f.weight, f.shape)
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, options)
	if err != nil {
		return nil, nil, err
	}
	defer p.Close()
	out := new(output.Memory)
	report, err := p.RunTo(t.Context(), out)
	return report, out, err
}

// TestHostileQuantisedBases: a weight of any scheme without one of its tensors, or with one of a
// shape or dtype that it cannot have, is refused with an error that says which. No merge goes on
// with it.
func TestHostileQuantisedBases(t *testing.T) {
	for _, f := range quantisedFixtures(t) {
		whole := readModel(t, f.dir, true)
		if _, _, err := f.tryMerge(t, f.write(t, whole), merge.Options{AllowNonFinite: true}); err != nil {
			t.Fatalf("%s: the fixture itself: %v", f.dir, err)
		}
		refused := func(what, part string, x *testkit.Tensor) {
			t.Helper()
			tensors := make(map[string]testkit.Tensor)
			for name, y := range whole {
				if name != part {
					tensors[name] = y
				}
			}
			if x != nil {
				tensors[part] = *x
			}
			_, _, err := f.tryMerge(t, f.write(t, tensors), merge.Options{AllowNonFinite: true})
			var e *fault.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), strings.TrimSuffix(f.weight, ".weight")) {
				t.Errorf("%s %s %q: %v, want a refusal that names it", f.dir, what, part, err)
			}
		}
		for _, part := range f.parts {
			x := whole[part]
			if isBeside(part) {
				continue // values of activations, or of an order that rows have anyway
			}
			isOptional := strings.HasSuffix(part, "._weight_zero_point") || // torchao has symmetric weights without
				strings.HasSuffix(part, ".g_idx") && !strings.Contains(string(f.config), `"desc_act": true`)
			if !isOptional {
				refused("without", part, nil)
			}
			row := uint64(len(x.Data))
			if len(x.Shape) > 0 && x.Shape[0] > 0 {
				row /= x.Shape[0]
				longer := x
				longer.Shape, longer.Data = slices.Clone(x.Shape), append(slices.Clone(x.Data), x.Data[:row]...)
				longer.Shape[0]++
				refused("with a row more in", part, &longer)
			}
			other := x
			other.DType = map[int]dtype.Type{1: dtype.BOOL, 2: dtype.I16, 4: dtype.I32, 8: dtype.I64}[x.DType.Size()]
			if other.DType == x.DType {
				other.DType = dtype.U32
			}
			if strings.HasSuffix(part, ".weight") && strings.Contains(f.dir, "bnb_nf4") || strings.Contains(f.dir, "bnb_fp4") {
				continue // bitsandbytes stores the bytes of codes in any dtype
			}
			if strings.HasSuffix(part, ".W_q") {
				continue // and so does HQQ
			}
			refused(other.DType.String()+" in", part, &other)
		}
	}
}

// isBeside reports whether a tensor of a fixture does not change its values.
func isBeside(part string) bool {
	return slices.ContainsFunc([]string{"input_scale", "output_scale", "weight_format", "input_global_scale", "activation_scale"}, func(tail string) bool { return strings.HasSuffix(part, tail) })
}

// TestScalesThatAreNoNumbers: NaN and infinity in scales come out as they are and are counted. A
// scale of zero gives zeros. One beyond the dtype of the output ends the merge with a count, unless
// the caller allows it, also in a weight that no adapter changes.
func TestScalesThatAreNoNumbers(t *testing.T) {
	n := 0
	for _, f := range quantisedFixtures(t) {
		whole := readModel(t, f.dir, true)
		scale, at := "", 0
		for _, part := range f.parts[1:] {
			if x := whole[part]; (x.DType == dtype.F32 || x.DType == dtype.BF16 || x.DType == dtype.F16) && strings.Contains(part, "scale") && !isBeside(part) ||
				x.DType == dtype.F32 && strings.HasSuffix(part, ".absmax") || strings.HasSuffix(part, ".SCB") {
				scale = part
			}
		}
		if scale == "" || strings.HasSuffix(scale, "global_scale") {
			continue
		}
		n++
		with := func(v float64) string {
			tensors := make(map[string]testkit.Tensor)
			for name, x := range whole {
				if name == scale {
					x.Data = slices.Clone(x.Data)
					dtype.Store(x.DType, x.Data, at, v)
				}
				tensors[name] = x
			}
			return f.write(t, tensors)
		}
		for _, v := range []float64{math.NaN(), math.Inf(1)} {
			report, out, err := f.tryMerge(t, with(v), merge.Options{})
			if err != nil || report.NonFiniteBefore == 0 || report.NonFiniteAfter != report.NonFiniteBefore || nonFinite(t, out, f.weight) != report.NonFiniteAfter {
				t.Errorf("%s with a scale of %v: %+v, error %v, want counts", f.dir, v, report, err)
			}
		}
		report, out, err := f.tryMerge(t, with(0), merge.Options{})
		if err != nil || report.NonFiniteAfter != 0 || nonFinite(t, out, f.weight) != 0 {
			t.Errorf("%s with a scale of 0: %+v, error %v", f.dir, report, err)
		}
		if whole[scale].DType == dtype.F16 {
			continue // a code times a number of F16 fits BF16
		}
		base := with(1e6) // beyond F16
		_, _, err = f.tryMerge(t, base, merge.Options{OutDType: dtype.F16})
		if !errors.Is(err, format.ErrCheck) || !strings.Contains(err.Error(), "would become infinite or NaN, in") {
			t.Errorf("%s beyond F16: %v, want a refusal", f.dir, err)
		}
		report, out, err = f.tryMerge(t, base, merge.Options{OutDType: dtype.F16, AllowNonFinite: true})
		if err != nil || report.NonFiniteAfter == 0 || nonFinite(t, out, f.weight) != report.NonFiniteAfter {
			t.Errorf("%s beyond F16, allowed: %+v, error %v", f.dir, report, err)
		}
	}
	if n < 6 {
		t.Errorf("%d fixtures have scales in floats", n)
	}
}

// nonFinite counts NaN and infinity in a tensor of an output.
func nonFinite(t *testing.T, out *output.Memory, name string) (n int64) {
	t.Helper()
	for file, content := range out.Files() {
		if !strings.HasSuffix(file, ".safetensors") {
			continue
		}
		c, err := checkpoint.New(t.Context(), file, strings.NewReader(string(content)), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		ref, ok := c.Lookup(name)
		if !ok {
			t.Fatalf("the output has no %q", name)
		}
		data, err := io.ReadAll(ref.Tensor.Reader(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(data) / ref.Tensor.DType.Size() {
			if v := dtype.Load(ref.Tensor.DType, data, i); v-v != 0 {
				n++
			}
		}
	}
	return n
}

// TestOverflowOfWeightsThatNoAdapterChanges: --dequantise to F16 counts what F16 cannot hold.
func TestOverflowOfWeightsThatNoAdapterChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(71, 72))
	f := quantisedFixture{weight: "b.weight", shape: []uint64{4, 8}}
	codes := testkit.Tensor{Name: "a.weight", DType: dtype.F8E4M3, Shape: []uint64{4, 8}, Data: make([]byte, 32)}
	codes.Data[0], codes.Data[1], codes.Data[2], codes.Data[3] = 0x7e, 0xfe, 0x7f, 0x38 // 448, −448, NaN, 1
	scale := testkit.Tensor{Name: "a.weight_scale", DType: dtype.F32, Shape: []uint64{1}, Data: binary.LittleEndian.AppendUint32(nil, math.Float32bits(1000))}
	base := f.write(t, map[string]testkit.Tensor{"a": codes, "s": scale, "b": testkit.Random(rng, f.weight, dtype.BF16, 1, 4, 8)})
	_, _, err := f.tryMerge(t, base, merge.Options{Dequantise: true, OutDType: dtype.F16})
	if !errors.Is(err, format.ErrCheck) || !strings.Contains(err.Error(), `2 finite weights would become infinite or NaN, in "a.weight"`) {
		t.Errorf("%v, want a refusal that counts two weights", err)
	}
	report, out, err := f.tryMerge(t, base, merge.Options{Dequantise: true, OutDType: dtype.F16, AllowNonFinite: true})
	if err != nil || report.NonFiniteBefore != 1 || report.NonFiniteAfter != 3 || nonFinite(t, out, "a.weight") != 3 {
		t.Errorf("%+v, error %v, want 1 before and 3 after", report, err)
	}
	report, _, err = f.tryMerge(t, base, merge.Options{Dequantise: true})
	if err != nil || report.NonFiniteBefore != 1 || report.NonFiniteAfter != 1 {
		t.Errorf("in BF16: %+v, error %v", report, err)
	}
}
