package quant_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/safetensors"
)

// TestCodesAreThoseOfTheLibraries: codes and scales equal those of transformers, torchao and
// bitsandbytes, to the bit.
func TestCodesAreThoseOfTheLibraries(t *testing.T) {
	raw, err := os.ReadFile(fixtures + "encoded/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Read(t.Context(), bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	tensors := make(map[string]safetensors.Tensor)
	for _, x := range h.Tensors {
		tensors[x.Name] = x
	}
	values := func(name string) []float32 {
		x := tensors[name]
		n, _ := dtype.NElements(x.Shape)
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(dtype.Load(x.DType, raw[x.Off:][:x.NBytes], i))
		}
		return values
	}
	n := 0
	for name := range tensors {
		weight, kind, ok := strings.Cut(strings.TrimSuffix(name, ".codes"), ".")
		e, isKind := quant.ParseEncoding(kind)
		if !ok || !isKind {
			continue
		}
		n++
		x := tensors[weight]
		rows, cols := int(x.Shape[0]), int(x.Shape[1])
		codes := make([]byte, rows*cols)
		scales := e.Encode(codes, nil, values(weight), rows, cols, quant.Largest(values(weight)))
		want := raw[tensors[name].Off:][:tensors[name].NBytes]
		for i := range want {
			if codes[i] != want[i] {
				t.Errorf("%s: code %d of %v is %#x, want %#x", name, i, values(weight)[i], codes[i], want[i])
				break
			}
		}
		if wantScales := values(weight + "." + kind + ".scales"); !slices.Equal(scales, wantScales) {
			t.Errorf("%s: scales are %v, want %v", name, scales, wantScales)
		}
		checkParts(t, e, name, values(weight), rows, cols)
	}
	if n != 20 {
		t.Errorf("%d encodings were compared, want 20", n)
	}
}

// checkParts encodes a weight in parts of RowsAtOnce rows, which gives the same values.
func checkParts(t *testing.T, e quant.Encoding, name string, x []float32, rows, cols int) {
	codes, whole, parts := make([]byte, len(x)), make([]float64, len(x)), make([]float64, len(x))
	e.Decode(whole, codes, e.Encode(codes, nil, x, rows, cols, quant.Largest(x)), rows, cols)
	for i, step := 0, e.RowsAtOnce(cols); i < rows; i += step {
		n := min(step, rows-i)
		e.Decode(parts[i*cols:], codes, e.Encode(codes, nil, x[i*cols:][:n*cols], n, cols, quant.Largest(x)), n, cols)
	}
	for i := range whole {
		if math.Float64bits(whole[i]) != math.Float64bits(parts[i]) {
			t.Fatalf("%s: in parts element %d is %v, want %v", name, i, parts[i], whole[i])
		}
	}
}

// TestNearestKeepsTheGrid: values of codes stay, and anything else becomes the nearest of them.
func TestNearestKeepsTheGrid(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, codes := range map[string]int{"fp8": 256, "mxfp4": 16, "nf4": 16, "nvfp4": 16, "int4": 16} {
		e, _ := quant.ParseEncoding(name)
		var grid []float64
		for c := range codes {
			v := make([]float64, 1)
			e.Decode(v, []byte{byte(c)}, []float32{1}, 1, 1)
			if v[0] == v[0] {
				grid = append(grid, v[0])
			}
		}
		for range 10000 {
			scale := math.Ldexp(1+rng.Float64(), rng.IntN(20)-10)
			x := rng.NormFloat64() * 2 * slices.Max(grid) * scale * math.Pow(2, -8*rng.Float64())
			if rng.IntN(4) == 0 {
				x = grid[rng.IntN(len(grid))] * scale
			}
			got := make([]float64, 1)
			e.Nearest(got, []float64{x}, []float64{scale})
			best := math.Inf(1)
			for _, v := range grid {
				best = min(best, math.Abs(v*scale-x))
			}
			if math.Abs(got[0]-x) > best*(1+1e-12) {
				t.Fatalf("%s: nearest(%v, scale %v) = %v at %v, want %v", name, x, scale, got[0], math.Abs(got[0]-x), best)
			}
		}
	}
}

// TestScalesTimesCodesAreValues: a weight is its codes times its scales.
func TestScalesTimesCodesAreValues(t *testing.T) {
	for _, dir := range []string{
		"fp8_block_ragged_320x200", "ct_fp8_channel", "ct_mxfp8", "gptoss_mxfp4", "bnb_nf4_dq_bfloat16_40x72",
		"bnb_nf4_plain_float16_96x128", "ct_mxfp4", "modelopt_nvfp4", "ct_w4_sym_g128", "ct_w4_actorder_g16",
	} {
		s := load(t, fixtures+dir)
		for _, w := range s.recognise(t).Weights {
			values := s.decode(t, &w)
			unit := w
			unit.Codec = quant.Scales(w.Codec)
			scales := s.decode(t, &unit)
			e := quant.FP8
			for _, other := range []quant.Encoding{quant.MXFP4, quant.NF4, quant.NVFP4, quant.INT4} {
				if other.Stores(w.Scheme) {
					e = other
				}
			}
			if !e.Stores(w.Scheme) {
				t.Fatalf("no encoding stores %q", w.Scheme)
			}
			got := make([]float64, len(values))
			e.Nearest(got, values, scales)
			for i := range got {
				if got[i] != values[i] && values[i]-values[i] == 0 {
					t.Fatalf("%s: the nearest value to %v with scale %v is %v", dir, values[i], scales[i], got[i])
				}
			}
		}
	}
}

// TestShareThatRequantisationKeeps repeats an experiment whose figures were measured with the
// libraries: a quantised weight of 512×1024 numbers of N(0, 0.02), and ΔW of rank 16, whose norm is
// ρ times that of the weight.
func TestShareThatRequantisationKeeps(t *testing.T) {
	const rows, cols, rank = 512, 1024, 16
	for _, c := range []struct {
		encoding         string
		rho              float64
		fresh, freshErr  float64 // share of ΔW, relative error
		kept, keptErr    float64
		within, withinEr float64
	}{
		{"fp8", .1, .997, .26, .995, .26, .01, .02}, {"fp8", .03, .81, .66, .79, .63, .015, .02},
		{"fp8", .01, .37, .90, .36, .87, .015, .02}, {"fp8", .003, .11, .99, .12, .96, .02, .03},
		{"mxfp4", .1, .72, .78, .70, .75, .02, .03}, {"mxfp4", .03, .07, 1.3, .04, 1.0, .03, .1},
		{"mxfp4", .01, .09, 2.8, 0, 1, .1, .5},
		{"nf4", .1, .84, .78, .77, .74, .02, .02}, {"nf4", .03, .04, 1.1, .02, 1.0, .02, .06},
		{"nf4", .01, .02, 1.1, 0, 1, .02, .06}, {"nf4", .003, .02, 1.1, 0, 1, .03, .2},
		{"nvfp4", .1, .84, .76, .71, .72, .02, .02}, {"nvfp4", .03, .11, 1.0, .09, .99, .02, .02}, {"nvfp4", .01, 0, 1, 0, 1, .02, .02},
		{"nvfp4", .003, 0, 1, 0, 1, .02, .02},
		{"int4", .1, .71, .97, .55, .88, .02, .03}, {"int4", .03, .14, 2.3, 0, 1, .03, .15}, {"int4", .01, .06, 6.6, 0, 1, .1, .5},
		{"int4", .003, .10, 22, 0, 1, .2, 2},
	} {
		rng := rand.New(rand.NewPCG(7, 8))
		w, delta := normal(rng, rows*cols, .02), product(normal(rng, rows*rank, 1), normal(rng, rank*cols, 1), rows, rank, cols)
		by := c.rho * norm(w) / norm(delta)
		for i := range delta {
			delta[i] *= by
		}
		e, _ := quant.ParseEncoding(c.encoding)
		was, scales := encoded(e, w, rows, cols)
		now, _ := encoded(e, plus(was, delta), rows, cols)
		share, relative := survived(now, was, delta)
		name := fmt.Sprintf("%s, ρ = %g", c.encoding, c.rho)
		check(t, name+", fresh scales", share, c.fresh, relative, c.freshErr, c.within, c.withinEr)
		e.Nearest(now, plus(was, delta), scales)
		share, relative = survived(now, was, delta)
		check(t, name+", scales kept", share, c.kept, relative, c.keptErr, c.within, c.withinEr)
	}
}

func check(t *testing.T, name string, share, want, relative, wantErr, within, withinErr float64) {
	t.Helper()
	t.Logf("%s: share %.3f (%.3f), error %.2f (%.2f)", name, share, want, relative, wantErr)
	if math.Abs(share-want) > within || math.Abs(relative-wantErr) > withinErr {
		t.Errorf("%s: a share of %.3f is kept with error %.2f, want %.3f and %.2f", name, share, relative, want, wantErr)
	}
}

// encoded returns the values of a weight after its encoding, and the scale of each.
func encoded(e quant.Encoding, x []float64, rows, cols int) (values, scales []float64) {
	narrow, codes := make([]float32, len(x)), make([]byte, len(x))
	for i, v := range x {
		narrow[i] = float32(v)
	}
	stored := e.Encode(codes, nil, narrow, rows, cols, quant.Largest(narrow))
	values, scales = make([]float64, len(x)), make([]float64, len(x))
	e.Decode(values, codes, stored, rows, cols)
	for i := range codes {
		codes[i] = map[quant.Encoding]byte{quant.FP8: 0x38, quant.MXFP4: 2, quant.NF4: 15, quant.NVFP4: 2, quant.INT4: 9}[e] // 1
	}
	e.Decode(scales, codes, stored, rows, cols)
	return values, scales
}

func survived(now, was, delta []float64) (share, relative float64) {
	var dd, hd, ee float64
	for i, d := range delta {
		h := now[i] - was[i]
		dd, hd, ee = dd+d*d, hd+h*d, ee+(h-d)*(h-d)
	}
	return hd / dd, math.Sqrt(ee / dd)
}

func normal(rng *rand.Rand, n int, std float64) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = std * rng.NormFloat64()
	}
	return x
}

func product(b, a []float64, rows, rank, cols int) []float64 {
	x := make([]float64, rows*cols)
	for i := range rows {
		for k := range rank {
			for j := range cols {
				x[i*cols+j] += b[i*rank+k] * a[k*cols+j]
			}
		}
	}
	return x
}

func norm(x []float64) (n float64) {
	for _, v := range x {
		n += v * v
	}
	return math.Sqrt(n)
}

func plus(x, y []float64) []float64 {
	z := make([]float64, len(x))
	for i := range z {
		z[i] = x[i] + y[i]
	}
	return z
}
