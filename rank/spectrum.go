package rank

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
)

// Spectrum is the exact spectrum of one layer's update s·B·A. The package documentation has the
// definitions.
type Spectrum struct {
	Module         string
	SingularValues []float64 // min(m, n, r) values, descending
	Energy         []float64 // cumulative shares, one per value; all 0 for a zero update
	Frobenius      float64   // ‖s·B·A‖_F
	StableRank     float64
	EntropyRank    float64
	NumericalRank  int

	// Experts is the number of experts that the layer stacks, 0 for a layer of one matrix. The
	// other figures are those of the expert with the largest norm, but Frobenius is over all.
	Experts int

	// Missing is the reason why the layer has no spectrum, or "". NonFinite counts the NaN and
	// infinite values of its factors, one such reason.
	Missing   string
	NonFinite int64
}

// RankFor returns the fewest singular values with at least the given share of the energy; 0 for a
// zero update.
func (s *Spectrum) RankFor(share float64) int {
	for i, e := range s.Energy {
		if e >= share*(1-1e-15) {
			return i + 1
		}
	}
	return 0
}

// Spectra computes the spectra of all layers with an update s·B·A: linear layers, embeddings,
// convolutions, whose factors are taken as matrices, and stacked experts. It omits other layers,
// and never forms ΔW. A layer without a spectrum, because its factors hold NaN or infinity, has
// Missing set. Layers run on the given number of workers, 0 for one per processor; each holds the
// factors of one layer in float64 ([SpectraBytes]). Spectra returns within a second or two after
// ctx ends, at any rank.
func Spectra(ctx context.Context, src format.Source, workers int) ([]Spectrum, error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	layers := layersWithSpectrum(m)
	spectra := make([]Spectrum, len(layers))
	err := parallel.For(ctx, workers, len(layers), func(_, i int) error {
		s, err := spectrumOf(ctx, src, layers[i])
		if err != nil {
			return fmt.Errorf("%s: %w", layers[i].Module, err)
		}
		spectra[i] = *s
		return nil
	})
	return spectra, err
}

// SpectraBytes estimates the memory of [Spectra] with the given number of workers, 0 for one per
// processor, and names the module of the largest layer. The manifest must be valid.
func SpectraBytes(m *format.Manifest, workers int) (peak int64, module string) {
	var most float64
	layers := layersWithSpectrum(m)
	for _, l := range layers {
		a := float64(m.Tensors[l.Roles[format.RoleA]].Elements())
		b := float64(m.Tensors[l.Roles[format.RoleB]].Elements())
		r := float64(l.Rank)
		// The factors, then two triangles or their replacements, and their product.
		roots := min(r*r, a) + min(r*r, b) + min(r, a/r)*min(r, b/r)
		if l.Kind.IsExpert() || l.Kind == format.Other {
			a, b = 2*a, 2*b // also taken apart, expert by expert
		}
		if need := 8 * (a + b + roots); need > most {
			most, module = need, l.Module
		}
	}
	n := float64(min(parallel.Workers(workers), len(layers)))
	return int64(min(most*n, math.MaxInt64/2)), module
}

// layersWithSpectrum lists the layers with an update s·B·A. DoRA also rescales, but its directions
// come from s·B·A.
func layersWithSpectrum(m *format.Manifest) (layers []*format.Layer) {
	for i := range m.Adapters {
		for j := range m.Adapters[i].Layers {
			l := &m.Adapters[i].Layers[j]
			_, hasCore := l.Roles[format.RoleCore]
			isPlain := l.Kind == format.Linear || l.Kind == format.Embedding || l.Kind == format.Conv && !hasCore
			_, err := factorsOf(l, m.Tensors, true)
			if isPlain || err == nil {
				layers = append(layers, l)
			}
		}
	}
	return layers
}

func spectrumOf(ctx context.Context, src format.Source, l *format.Layer) (*Spectrum, error) {
	f, err := factorsOf(l, src.Manifest().Tensors, true)
	if err != nil {
		return nil, err
	}
	all, bad, err := f.read(ctx, src)
	if err != nil {
		return nil, err
	}
	if bad > 0 {
		return &Spectrum{Module: l.Module, NonFinite: bad,
			Missing: fmt.Sprintf("%s of its factors %s NaN or infinite", fault.Count(bad, "value"), fault.Choose(bad, "is", "are"))}, nil
	}
	fraction, e := math.Frexp(math.Abs(l.Scale()))
	var main *Spectrum
	var squares float64
	for _, x := range all {
		x.Balance()
		sigma, err := x.SingularValues(ctx)
		if err != nil {
			return nil, err
		}
		for i := range sigma {
			sigma[i] *= fraction
		}
		s := describe(l.Module, sigma, x.Exponent+e, max(f.rows, f.cols), unitOf(src.Manifest().Tensors[f.tensorsB].DType))
		if s.Missing != "" || main == nil || s.Frobenius > main.Frobenius {
			if main = s; s.Missing != "" {
				return s, nil
			}
		}
		squares += s.Frobenius * s.Frobenius
	}
	if len(all) > 1 {
		main.Experts, main.Frobenius = len(all), math.Sqrt(squares)
	}
	return main, nil
}

// describe computes the figures of the singular values 2^exponent·sigma, and stores these values in
// sigma. Shares and ranks do not depend on the exponent, so no square can overflow.
func describe(module string, sigma []float64, exponent, longSide int, unit float64) *Spectrum {
	s := &Spectrum{Module: module, SingularValues: sigma, Energy: make([]float64, len(sigma))}
	if len(sigma) == 0 || sigma[0] == 0 {
		return s
	}
	_, e := math.Frexp(sigma[0])
	exponent += e
	for i, v := range sigma {
		sigma[i] = math.Ldexp(v, -e)
	}
	total, first := sumSquares(sigma), sigma[0]
	var sum, entropy float64
	for i, v := range sigma {
		p := v * v / total
		sum += p
		s.Energy[i] = min(sum, 1)
		if p > 0 {
			entropy -= p * math.Log(p)
		}
		if v > float64(longSide)*unit*first {
			s.NumericalRank++
		}
		sigma[i] = math.Ldexp(v, exponent)
	}
	s.Frobenius = math.Ldexp(math.Sqrt(total), exponent)
	if sigma[0] < 0x1p-1022 || math.IsInf(s.Frobenius, 0) {
		return &Spectrum{Module: module,
			Missing: fmt.Sprintf("its largest singular value is about 2^%d, beyond float64", exponent)}
	}
	s.StableRank, s.EntropyRank = total/(first*first), math.Exp(entropy)
	return s
}

// unitOf returns the unit roundoff of a dtype, and float64's for other types.
func unitOf(d dtype.Type) float64 {
	l, ok := d.Layout()
	if !ok {
		return 0x1p-53
	}
	return l.Unit()
}

// readScratch is memory of readFactor. An adapter can have very many small factors.
type readScratch struct {
	raw    []byte
	values []float64 // of a factor to transpose
}

var factorScratch = sync.Pool{New: func() any { return new(readScratch) }}

// scratchFor returns memory for n elements of a size.
func scratchFor(n, size int) *readScratch {
	s := factorScratch.Get().(*readScratch)
	if cap(s.raw) < n*size || cap(s.values) < n {
		*s = readScratch{make([]byte, n*size), make([]float64, n)}
	}
	return s
}

// readFactor reads a tensor as float64, in pieces, and counts its NaN and infinite values. A
// nonzero transposed is the tensor's number of rows, and transposes the result.
func readFactor(ctx context.Context, src format.Source, i, transposed int) (x []float64,
	nonFinite int64, err error) {
	t := &src.Manifest().Tensors[i]
	const piece = 1 << 16
	x = make([]float64, t.Elements())
	size := t.DType.Size()
	scratch := scratchFor(min(piece, len(x)), size)
	defer factorScratch.Put(scratch)
	for first := 0; first < len(x); first += piece {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		v := x[first:min(first+piece, len(x))]
		p := scratch.raw[:len(v)*size]
		if transposed > 0 {
			v = scratch.values[:len(v)]
		}
		if err := src.ReadBlobAt(p, i, int64(first)*int64(size)); err != nil {
			return nil, 0, err
		}
		dtype.Widen64(v, t.DType, p)
		for _, e := range v {
			if e-e != 0 {
				nonFinite++
			}
		}
		if transposed > 0 {
			transpose(x, v, first, transposed)
		}
	}
	return x, nonFinite, nil
}

// transpose puts v, elements of a matrix of so many rows from number first on, in their places in
// its transpose x.
func transpose(x, v []float64, first, rows int) {
	cols := len(x) / rows
	row, col := first/cols, first%cols
	for _, e := range v {
		x[col*rows+row] = e
		if col++; col == cols {
			row, col = row+1, 0
		}
	}
}
