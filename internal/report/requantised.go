package report

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/quant"
	"github.com/loratool/loratool/internal/rectangle"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
)

// Requantised says how much of ΔW would be left if the merged weights were quantised.
//
// A base that stores a weight in the scheme keeps its scales, and each element becomes the nearest
// value Q(W + ΔW) of a code; then ΔŴ = Q(W + ΔW) − W. For any other base the scales are fresh, of W
// and of W + ΔW (see package quant for the rules), and ΔŴ = Q(W + ΔW) − Q(W).
type Requantised struct {
	As   string       `json:"as"`   // a name of quant.Encodings
	Kept merge.Figure `json:"kept"` // ⟨ΔŴ, ΔW⟩/‖ΔW‖², over all layers
	// Error is ‖ΔŴ − ΔW‖/‖ΔW‖. Rounding to codes adds this much, be it noise or loss.
	Error merge.Figure `json:"error"`
	// In16Bits has the fewest tensors that must stay in 16 bits so that Aim of ‖ΔW‖² is kept, those
	// that lose most first, and KeptWith is the share that is kept then.
	In16Bits []string     `json:"in_16_bits"`
	Aim      float64      `json:"aim"`
	KeptWith merge.Figure `json:"kept_with"`
}

// Survival is the part of the ΔW of a layer that requantisation leaves.
type Survival struct {
	Norm   float64      `json:"norm"`   // ‖ΔW‖
	Kept   merge.Figure `json:"kept"`   // ⟨ΔŴ, ΔW⟩/‖ΔW‖²
	Error  merge.Figure `json:"error"`  // ‖ΔŴ − ΔW‖/‖ΔW‖
	Scales string       `json:"scales"` // kept or fresh
}

// SurvivalMap says of each layer of a merge how much of its ΔW would be left if the merged weights
// were quantised.
type SurvivalMap struct {
	Requantised
	Layers      []LayerSurvival `json:"layers"`
	NotMeasured []NotMeasured   `json:"not_measured"`
}

// LayerSurvival is the Survival of a layer.
type LayerSurvival struct {
	Module string `json:"module"`
	Tensor string `json:"tensor"` // of the base
	Expert *int   `json:"expert,omitempty"`
	Survival
}

// Name is the name of the layer's tensor and, of stacked experts, the number of the expert.
func (l *LayerSurvival) Name() string { return nameOf(l.Tensor, l.Expert) }

// Together returns the share that is kept of several layers, and the error. Both are NaN if ΔW is
// zero in all of them.
func Together(layers []*Survival) (kept, err float64) {
	var total survival
	for _, l := range layers {
		if l == nil || l.Norm == 0 {
			continue
		}
		squares, e := l.Norm*l.Norm, float64(l.Error)
		total.add(&survival{squares, float64(l.Kept) * squares, e * e * squares})
	}
	k, e := total.figures()
	return float64(k), float64(e)
}

// aimed is the share of ‖ΔW‖² that Requantised.In16Bits keeps.
const aimed = 0.95

// Survivals measures what a quantisation to o.As would leave of the updates of a merge. It reads
// the weights that change, and writes nothing. Of the options it uses Merge, As, Begin and Allow.
func Survivals(
	ctx context.Context, path string, adapters []merge.Adapter, o BaseOptions,
) (*SurvivalMap, error) {
	base, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	view, changes, err := changesOf(base, adapters, &o.Merge)
	if err != nil {
		return nil, err
	}
	if err := o.allow(measureBytes(changes, &o)); err != nil {
		return nil, err
	}
	thin, others := thinOf(changes)
	found, err := requantise(ctx, view, thin, &o)
	if err != nil {
		return nil, err
	}
	m := &SurvivalMap{Requantised: found.Requantised, Layers: []LayerSurvival{}, NotMeasured: append(others, found.notMeasured...)}
	for i := range thin {
		for j, s := range found.left[i] {
			r := thin[i][j]
			m.Layers = append(m.Layers, LayerSurvival{r.Module, r.Name, r.Expert(), *s})
		}
	}
	return m, nil
}

// requantised is the result of requantise. left[i][j] is of the rectangle thin[i][j]; left[i] is
// nil for tensors that cannot be quantised so.
type requantised struct {
	Requantised
	left        [][]*Survival
	notMeasured []NotMeasured
}

// requantise measures what is left of the updates of tensors whose merged weights are quantised.
func requantise(
	ctx context.Context, view *checkpoint.Checkpoint, thin [][]*rectangle.Rectangle, o *BaseOptions,
) (*requantised, error) {
	r := &requantised{left: make([][]*Survival, len(thin))}
	sums := make([]survival, len(thin))
	why := make([]string, len(thin))
	done := o.Begin.begin("requantising", rectangle.Bytes(thin))
	err := parallel.For(ctx, o.Merge.Workers, len(thin), func(_, i int) (err error) {
		q := &requantiser{encoding: o.As, change: thin[i][0].Change, base: view, done: done}
		if why[i] = q.open(thin[i]); why[i] == "" {
			r.left[i], sums[i], err = q.measure(ctx, thin[i])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var names []string
	var measured []survival
	for i, c := range thin {
		if why[i] != "" {
			r.notMeasured = append(r.notMeasured, NotMeasured{c[0].Change.Module, c[0].Name, why[i]})
			continue
		}
		names, measured = append(names, c[0].Name), append(measured, sums[i])
	}
	r.Requantised = *summarise(o.As, names, measured)
	return r, nil
}

// summarise adds up the rest of ΔW in tensors, and chooses those to keep in 16 bits.
func summarise(as quant.Encoding, names []string, sums []survival) *Requantised {
	r := &Requantised{As: as.String(), In16Bits: []string{}, Aim: aimed}
	var total survival
	order := make([]int, len(sums))
	for i := range sums {
		total.add(&sums[i])
		order[i] = i
	}
	r.Kept, r.Error = total.figures()
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(sums[j].lost(), sums[i].lost()) })
	kept := total.inner
	for _, i := range order {
		if kept >= aimed*total.delta || sums[i].lost() <= 0 {
			break
		}
		kept += sums[i].lost()
		r.In16Bits = append(r.In16Bits, names[i])
	}
	r.KeptWith = merge.Figure(kept / total.delta)
	return r
}

// survival has sums over elements.
type survival struct {
	delta float64 // ‖ΔW‖²
	inner float64 // ⟨ΔŴ, ΔW⟩
	err   float64 // ‖ΔŴ − ΔW‖²
}

func (s *survival) add(x *survival) {
	s.delta, s.inner, s.err = s.delta+x.delta, s.inner+x.inner, s.err+x.err
}

func (s *survival) element(delta, got float64) {
	s.delta += delta * delta
	s.inner += got * delta
	s.err += (got - delta) * (got - delta)
}

// lost is the part of ‖ΔW‖² that is not kept.
func (s *survival) lost() float64 { return s.delta - s.inner }

// figures returns the share that is kept and the error, which are NaN if ΔW is zero.
func (s *survival) figures() (kept, err merge.Figure) {
	return merge.Figure(s.inner / s.delta), merge.Figure(math.Sqrt(s.err / s.delta))
}

// requantiser quantises the merged values of one tensor, some rows at a time.
type requantiser struct {
	encoding quant.Encoding
	change   *resolve.Change
	base     *checkpoint.Checkpoint
	done     func(bytes int64)

	tensor       *checkpoint.Tensor
	scales       checkpoint.Reader // of the elements; nil for fresh ones
	isTransposed bool              // the tensor is in×out
	height, cols int               // of a band
	step         int               // rows at once

	buffer                   rectangle.Buffer
	delta, sum, factors, was []float64
	narrow                   []float32
	raw                      []byte
	memory                   quant.Memory
	largest                  [2]float32 // of W and of W + ΔW in a band, if the encoding needs it
}

// stepElements is about the number of elements that are quantised at once.
const stepElements = 1 << 18

// bytesAtOnce is the memory for one of these elements, in all buffers.
const bytesAtOnce = 64

// open looks at the tensor. It returns a reason if the tensor cannot be quantised so.
func (q *requantiser) open(rects []*rectangle.Rectangle) (why string) {
	ref, _ := q.base.Lookup(q.change.Name)
	q.tensor = ref.Tensor
	nRows, nCols := q.change.Matrix()
	q.height, q.cols = int(nRows)/q.change.NBands, int(nCols)
	q.isTransposed = rects[0].Terms[0].Transposed
	if q.encoding.Stores(q.tensor.Scheme) {
		if q.scales = checkpoint.ScalesOf(q.base, q.change.Name); q.scales != nil {
			q.step = max(1, stepElements/q.cols)
			return ""
		}
	}
	switch {
	case len(q.change.Shape) < 2:
		return "programs quantise matrices alone"
	case !q.isTransposed && !q.encoding.FitsAlong(q.cols):
		return fmt.Sprintf("its rows have %d elements, and %v wants whole blocks", q.cols, q.encoding)
	case q.isTransposed && !q.encoding.FitsAcross(q.height):
		return fmt.Sprintf("its blocks run over columns of %d elements, and would not end with them", q.height)
	}
	unit := q.encoding.RowsAtOnce(q.cols)
	if q.isTransposed {
		unit = quant.AcrossAtOnce
	}
	q.step = unit * max(1, stepElements/(unit*q.cols))
	return ""
}

// measure adds up the rest of ΔW, in each rectangle and in all.
func (q *requantiser) measure(
	ctx context.Context, rects []*rectangle.Rectangle,
) (left []*Survival, total survival, err error) {
	read := make(map[resolve.Blob][]byte)
	left = make([]*Survival, len(rects))
	for band := range q.change.NBands {
		var parts []*part
		for i, rect := range rects {
			if rect.Band != band {
				continue
			}
			p := &part{Rectangle: rect, at: i}
			if p.factors, err = p.dense(ctx, read); err != nil {
				return nil, total, err
			}
			parts = append(parts, p)
		}
		if len(parts) == 0 {
			continue
		}
		if err := q.band(ctx, band, parts, &total); err != nil {
			return nil, total, err
		}
		for _, p := range parts {
			left[p.at] = p.describe(q.scales != nil)
			q.done(p.Bytes())
		}
	}
	return left, total, nil
}

// part is a rectangle of a band, with the rest of its ΔW.
type part struct {
	*rectangle.Rectangle
	at      int // among the rectangles of the tensor
	factors factors
	left    survival
}

// factors are B and A as plain numbers: ΔW is B·Aᵀ.
type factors struct {
	b, a []float64
	rank int
}

func (p *part) dense(ctx context.Context, read map[resolve.Blob][]byte) (f factors, err error) {
	m, err := p.Factors(ctx, read)
	if err != nil {
		return f, err
	}
	m.Balance()
	f = factors{m.B, m.A, m.R}
	for i := range f.b {
		f.b[i] = math.Ldexp(f.b[i], m.Exponent)
	}
	return f, nil
}

func (p *part) describe(isKept bool) *Survival {
	s := &Survival{Norm: math.Sqrt(p.left.delta), Scales: "fresh"}
	if isKept {
		s.Scales = "kept"
	}
	s.Kept, s.Error = p.left.figures()
	return s
}

// band quantises the rows of a band.
func (q *requantiser) band(ctx context.Context, band int, parts []*part, total *survival) error {
	if q.scales == nil && q.encoding.NeedsLargest() {
		q.largest = [2]float32{}
		err := q.pieces(ctx, band, parts, func(_, _ int, w []float64) error {
			q.findLargest(w)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return q.pieces(ctx, band, parts, func(first, n int, w []float64) error {
		got, err := q.left(ctx, w, int64(band*q.height+first)*int64(q.cols), n)
		if err != nil {
			return err
		}
		for i, d := range q.delta {
			total.element(d, got[i])
		}
		for _, p := range parts {
			rows, at := p.rows(first, n)
			for i := range rows {
				from := (p.Rows[at+i] - first) * q.cols
				for _, j := range p.Cols {
					p.left.element(q.delta[from+j], got[from+j])
				}
			}
		}
		return nil
	})
}

// pieces calls do with the values of n rows of a band after the other, whose ΔW is in q.delta.
func (q *requantiser) pieces(ctx context.Context, band int, parts []*part, do func(first, n int, w []float64) error) error {
	whole := &rectangle.Rectangle{Change: q.change, Band: band, Rows: count(q.height), Cols: count(q.cols)}
	for first := 0; first < q.height; first += q.step {
		n := min(q.step, q.height-first)
		w, err := whole.Read(ctx, q.tensor, first, n, &q.buffer)
		if err != nil {
			return err
		}
		q.sumUp(parts, first, n)
		if err := do(first, n, w); err != nil {
			return err
		}
	}
	return nil
}

// findLargest compares the magnitudes of W and W + ΔW with the largest ones so far.
func (q *requantiser) findLargest(w []float64) {
	q.narrow = grown(q.narrow, 2*len(w))
	was, sum := q.narrow[:len(w)], q.narrow[len(w):]
	for i, v := range w {
		was[i], sum[i] = float32(v), float32(v+q.delta[i])
	}
	q.largest = [2]float32{max(q.largest[0], quant.Largest(was)), max(q.largest[1], quant.Largest(sum))}
}

// rows counts the rows of a part among n of the band, and returns the number of the first.
func (p *part) rows(first, n int) (rows, at int) {
	at, _ = slices.BinarySearch(p.Rows, first)
	end, _ := slices.BinarySearch(p.Rows, first+n)
	return end - at, at
}

// sumUp writes ΔW of n rows of a band to q.delta.
func (q *requantiser) sumUp(parts []*part, first, n int) {
	q.delta = grown(q.delta, n*q.cols)
	clear(q.delta)
	for _, p := range parts {
		rows, at := p.rows(first, n)
		if rows == 0 || p.factors.rank == 0 {
			continue
		}
		q.factors = grown(q.factors, rows*len(p.Cols))
		clear(q.factors)
		dense.AddProductTransposed(q.factors, p.factors.b[at*p.factors.rank:(at+rows)*p.factors.rank], p.factors.a, rows, len(p.Cols), p.factors.rank)
		for i := range rows {
			from := q.delta[(p.Rows[at+i]-first)*q.cols:][:q.cols]
			for k, j := range p.Cols {
				from[j] += q.factors[i*len(p.Cols)+k]
			}
		}
	}
}

// left returns ΔŴ of n rows with the values w, the first of which is element at of the tensor.
func (q *requantiser) left(ctx context.Context, w []float64, at int64, n int) ([]float64, error) {
	q.sum, q.was = grown(q.sum, len(w)), grown(q.was, len(w))
	for i := range w {
		q.sum[i] = w[i] + q.delta[i]
	}
	if q.scales == nil {
		q.quantise(q.was, w, n, q.largest[0])
		q.quantise(q.sum, q.sum, n, q.largest[1])
		for i := range q.sum {
			q.sum[i] -= q.was[i]
		}
		return q.sum, nil
	}
	q.raw = grown(q.raw, 8*len(w))
	if err := q.scales.ReadAt(ctx, q.raw, 8*at); err != nil {
		return nil, err
	}
	dtype.Widen64(q.was, dtype.F64, q.raw)
	q.encoding.Nearest(q.sum, q.sum, q.was)
	for i := range q.sum {
		q.sum[i] = moved(w[i], q.sum[i])
	}
	return q.sum, nil
}

// moved returns to − from, two values of codes, or 0 if they are one that was rounded in two ways:
// that of NVFP4 in compressed-tensors, whose scale is a quotient, by up to 2⁻⁵³ each for the
// quotient and the product. Values of different codes differ by more than an eighth.
func moved(from, to float64) float64 {
	d := to - from
	if math.Abs(d) <= 0x1p-51*math.Abs(from) {
		return 0
	}
	return d
}

// quantise writes the values of n rows after a quantisation with fresh scales. A program reads them
// as float32 numbers, the largest of which in the band is amax.
func (q *requantiser) quantise(dst, x []float64, n int, amax float32) {
	q.narrow = grown(q.narrow, len(x))
	for i, v := range x {
		q.narrow[i] = float32(v)
	}
	rows, cols := n, q.cols
	if q.isTransposed {
		q.narrow, rows, cols = dense.Flip(q.narrow, rows, cols), cols, rows
	}
	q.encoding.RoundTrip(dst, q.narrow, rows, cols, amax, &q.memory)
	if q.isTransposed {
		copy(dst, dense.Flip(dst, rows, cols))
	}
}

// count returns 0, 1, … n−1.
func count(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// grown returns n elements in the memory of x if they fit.
func grown[T any](x []T, n int) []T { return slices.Grow(x[:0], n)[:n] }
