package convert_test

import (
	"bytes"
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
)

// written writes an adapter in a dialect and opens the result.
func written(t *testing.T, src format.Source, d convert.Dialect, o convert.CreateOptions) (format.Source, error) {
	t.Helper()
	var m output.Memory
	sink, err := convert.CreateTo(&m, d, o)
	if err := errors.Join(err, format.Copy(t.Context(), sink, src)); err != nil {
		return nil, err
	}
	content := m.Files()[""]
	back, err := convert.OpenReader(t.Context(), bytes.NewReader(content), int64(len(content)), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { back.Close() })
	return back, nil
}

// elements reads a factor of a layer.
func elements(t *testing.T, src format.Source, l *format.Layer, role format.Role) []float64 {
	t.Helper()
	x := &src.Manifest().Tensors[l.Roles[role]]
	p := make([]byte, x.NBytes())
	if err := src.ReadBlobAt(p, l.Roles[role], 0); err != nil {
		t.Fatal(err)
	}
	all := make([]float64, x.Elements())
	dtype.Widen64(all, x.DType, p)
	return all
}

// product returns the elements of B·A times the scale, exactly.
func product(t *testing.T, src format.Source, l *format.Layer, scale *big.Rat) []*big.Rat {
	t.Helper()
	a, b := elements(t, src, l, format.RoleA), elements(t, src, l, format.RoleB)
	n, m := len(a)/l.Rank, len(b)/l.Rank
	out := make([]*big.Rat, 0, m*n)
	for i := range m {
		for j := range n {
			sum := new(big.Rat)
			for k := range l.Rank {
				x := new(big.Rat).SetFloat64(b[i*l.Rank+k])
				sum.Add(sum, x.Mul(x, new(big.Rat).SetFloat64(a[k*n+j])))
			}
			out = append(out, sum.Mul(sum, scale))
		}
	}
	return out
}

// TestFoldedFactorsGiveTheSameProduct, in fractions: alpha becomes the rank, and s·B·A stays. A
// keeps its dtype where that holds the products, and is rounded only where F32 does not hold them.
func TestFoldedFactorsGiveTheSameProduct(t *testing.T) {
	const module = "lora_unet_double_blocks_0_img_mlp_0"
	rng := rand.New(rand.NewPCG(17, 3))
	for _, c := range []struct {
		alpha float64
		rank  uint64
		dtype dtype.Type
		sigma float64
		wantA dtype.Type
		round bool
	}{
		{1, 4, dtype.F16, 1, dtype.F16, false},
		{4, 4, dtype.BF16, 1, dtype.BF16, false},
		{-8, 2, dtype.BF16, 1, dtype.BF16, false},
		{1, 32, dtype.F16, 0x1p-13, dtype.F32, false}, // A lies at the end of F16's range
		{0x1p12, 1, dtype.F16, 30, dtype.F16, false},  // only B has room for the powers of two
		{3, 4, dtype.F16, 1, dtype.F32, false},
		{20, 32, dtype.BF16, 1, dtype.F32, false},
		{3, 4, dtype.F32, 1, dtype.F32, true},
		{1, 3, dtype.BF16, 1, dtype.F32, true},
		{0, 2, dtype.BF16, 1, dtype.BF16, false},
	} {
		a := testkit.Random(rng, module+".lora_down.weight", c.dtype, c.sigma, c.rank, 5)
		b := testkit.Random(rng, module+".lora_up.weight", c.dtype, 0x1p-6, 6, c.rank)
		other := zerosOf("lora_unet_single_blocks_0_linear1.lora_down.weight", dtype.F32, 1, 4)
		up := zerosOf("lora_unet_single_blocks_0_linear1.lora_up.weight", dtype.F32, 28, 1)
		alpha := testkit.Values(module+".alpha", dtype.F32, nil, c.alpha)
		src := open(t, write(t, nil, a, b, alpha, other, up), convert.Options{})
		o := convert.CreateOptions{FoldScale: true}
		back, err := written(t, src, convert.Kohya(), o)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		before, after := &src.Manifest().Adapters[0].Layers[0], &back.Manifest().Adapters[0].Layers[0]
		scale := new(big.Rat).SetFloat64(before.Scale())
		want, got := product(t, src, before, scale), product(t, back, after, big.NewRat(1, 1))
		same := 0
		for i := range want {
			if want[i].Cmp(got[i]) == 0 {
				same++
				continue
			}
			x, _ := want[i].Float64()
			y, _ := got[i].Float64()
			if math.Abs(x-y) > 0x1p-20 {
				t.Errorf("%+v: element %d is %v, want %v", c, i, y, x)
			}
		}
		if !c.round && same < len(want) {
			t.Errorf("%+v: %d of %d elements are equal", c, same, len(want))
		}
		if d := back.Manifest().Tensors[after.Roles[format.RoleA]].DType; after.Scale() != 1 || d != c.wantA {
			t.Errorf("%+v: scale %v, A is %v", c, after.Scale(), d)
		}
		remarks, err := convert.Remarks(t.Context(), "a.safetensors", convert.Kohya(), src, o)
		if err != nil || (len(remarks) > 0) != c.round {
			t.Errorf("%+v: remarks %q, %v", c, remarks, err)
		}
	}
}

// TestAnyScaleIsAnAlphaOfKohyas, whatever rule gives the scale.
func TestAnyScaleIsAnAlphaOfKohyas(t *testing.T) {
	for _, scaling := range []format.Scaling{format.AlphaOverSqrtR, format.Fixed, format.AlphaOverR} {
		b := format.NewBuilder("test")
		b.Linear("transformer.double_blocks.0.img_mlp.0", 3, 0.3, format.Float32s([]float32{1, 2, 3}), format.Float32s([]float32{4, 5, 6}))
		src, err := b.Source()
		if err != nil {
			t.Fatal(err)
		}
		l := &src.Manifest().Adapters[0].Layers[0]
		l.Scaling, l.Alpha, l.Fixed = scaling, 2, 0
		if scaling == format.Fixed {
			l.Alpha, l.Fixed = 0, 0.3
		}
		back, err := written(t, src, convert.Kohya(), convert.CreateOptions{})
		if err != nil {
			t.Errorf("%s: %v", scaling, err)
			continue
		}
		if got := back.Manifest().Adapters[0].Layers[0].Scale(); got != l.Scale() {
			t.Errorf("%s: scale %v, want %v", scaling, got, l.Scale())
		}
	}
}
