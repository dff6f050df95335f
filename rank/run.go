package rank

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// ExtractReport says what an extraction found.
type ExtractReport struct {
	Layers   []ExtractedLayer `json:"layers"`
	Beside   []BesideReport   `json:"beside"`
	Skipped  []Skipped        `json:"skipped"`
	Energy   float64          `json:"energy"`        // share of Σ‖Δ‖² over all layers that is kept
	Error    float64          `json:"error"`         // √ of the share that is not, before the factors are rounded
	Rounded  float64          `json:"rounded_error"` // the same for the factors as they are stored
	Bytes    int64            `json:"bytes"`         // of the factors and of what is beside
	Ranks    []RankEnergy     `json:"ranks"`         // what a fixed rank would give, over all layers
	Products int              `json:"products"`      // products with thin matrices
	Flops    int64            `json:"flops"`
}

// ExtractedLayer is the report of one layer. Errors are Frobenius norms relative to ‖Δ‖_F.
type ExtractedLayer struct {
	Module         string       `json:"module"`
	Kind           string       `json:"kind"`
	M              int          `json:"m"`
	N              int          `json:"n"`
	Rank           int          `json:"rank"`
	Energy         float64      `json:"energy"`
	Error          float64      `json:"error"`
	Rounded        float64      `json:"rounded_error"`
	Frobenius      float64      `json:"frobenius"`     // ‖Δ‖_F
	RelativeNorm   float64      `json:"relative_norm"` // ‖Δ‖_F / ‖W‖_F
	NoiseEdge      float64      `json:"noise_edge"`    // singular values below are rounding noise; 0 where it is not known
	SingularValues []float64    `json:"singular_values"`
	Ranks          []RankEnergy `json:"ranks"`

	energies energies
}

// energies are the squares that the totals are made of.
type energies struct{ all, kept, left, rounded float64 }

// RankEnergy is the share of the energy that rank k is known to reach. AtLeast is true where the decomposition stopped before
// the k-th value had converged, so that the true share can be larger.
type RankEnergy struct {
	Rank    int     `json:"rank"`
	Energy  float64 `json:"energy"`
	AtLeast bool    `json:"at_least"`
}

// BesideReport is a tensor that is carried whole.
type BesideReport struct {
	Tensor string `json:"tensor"`
	Why    string `json:"why"`
	Bytes  int64  `json:"bytes"`
}

// reportedRanks are the ranks of the table.
var reportedRanks = []int{4, 8, 16, 32, 64}

// Run decomposes every tensor that differs and returns the adapter. Its factors lie in a temporary file that goes when the source is
// closed. Memory is about three times the largest tensor in float32.
func (e *Extraction) Run(ctx context.Context) (format.Source, *ExtractReport, error) {
	r := &extracting{Extraction: e, report: &ExtractReport{Layers: []ExtractedLayer{}, Beside: []BesideReport{}, Skipped: append([]Skipped{}, e.skipped...)}}
	spool, err := newSpool()
	if err != nil {
		return nil, nil, err
	}
	r.spool = spool
	if err := r.all(ctx); err != nil {
		spool.Close()
		return nil, nil, err
	}
	return spool, r.report, nil
}

type extracting struct {
	*Extraction
	spool   *spool
	adapter format.Adapter
	report  *ExtractReport
	ranks   map[string]int // of the tensors, where a budget has chosen them
}

func (r *extracting) all(ctx context.Context) error {
	r.adapter = format.Adapter{Method: "lora"}
	if r.options.Budget > 0 {
		if err := r.spend(ctx); err != nil {
			return err
		}
	}
	for i := range r.pairs {
		p := &r.pairs[i]
		same, err := p.equal(ctx)
		if err != nil {
			return err
		}
		switch view, lowRank := r.view(p); {
		case same:
			r.report.Skipped = append(r.report.Skipped, Skipped{p.name, whyUnchanged})
		case lowRank:
			err = r.layer(ctx, p, view)
		default:
			err = r.beside(ctx, p, "not a matrix")
		}
		if err != nil {
			return err
		}
		if r.options.Layer != nil {
			r.options.Layer(p.name, p.tuned.ref.Tensor.NBytes)
		}
	}
	if len(r.report.Layers)+len(r.report.Beside) == 0 {
		return fault.New(fault.Mismatch, "nothing to extract: the two checkpoints hold the same values in all %d tensors that were compared", len(r.pairs)).
			WithHint("give the base first and the tuned checkpoint second; were both downloaded from the same place?")
	}
	if r.options.Strict {
		if err := r.strict(); err != nil {
			return err
		}
	}
	r.total()
	if err := r.rememberBase(); err != nil {
		return err
	}
	r.markTied()
	r.spool.manifest.Adapters = []format.Adapter{r.adapter}
	r.spool.manifest.Provenance = format.Provenance{Tool: r.options.Tool, Source: "extracted from a fine-tuned checkpoint"}
	return nil
}

// rememberBase records the fingerprints of a few of the base's tensors, spread over the model, so that merge can tell the base
// from others.
func (r *extracting) rememberBase() error {
	const most = 4
	layers := r.adapter.Layers
	r.adapter.Base.Fingerprints = make(map[string]string)
	n := min(most, len(layers))
	for i := range n {
		name := layers[i*(len(layers)-1)/max(1, n-1)].Module + ".weight"
		ref, _ := r.base.Lookup(name)
		f := r.base.Files[ref.File]
		id, err := format.Fingerprint(ref.Tensor.DType, ref.Tensor.Shape, io.NewSectionReader(f.Data, ref.Tensor.Off, ref.Tensor.NBytes))
		if err != nil {
			return fault.InFile(err, f.Path)
		}
		r.adapter.Base.Fingerprints[name] = id
	}
	return nil
}

// markTied says of an embedding that is tied to the output head that Δ is meant for both: it was taken from the one tensor.
func (r *extracting) markTied() {
	c := r.base.Config
	if !c.Found || !naming.IsTied(r.base.Names(), c.ModelType, c.Architectures, c.TieWordEmbeddings) {
		return
	}
	for i := range r.adapter.Layers {
		if naming.IsInputEmbedding(r.adapter.Layers[i].Module) {
			r.adapter.Requires = append(r.adapter.Requires, format.Requirement{Feature: format.FeatureWeightTying, Where: "ensure_weight_tying"})
			return
		}
	}
}

// strict fails on anything that an adapter of low rank does not hold.
func (r *extracting) strict() error {
	var names []string
	for _, b := range r.report.Beside {
		names = append(names, b.Tensor)
	}
	for _, s := range r.report.Skipped {
		if s.Why != whyUnchanged && s.Why != whyExcluded {
			names = append(names, s.Tensor)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Check, "%d tensors differ and low rank does not hold them: %s", len(names), fault.List(names, 3)).
		WithHint("without --strict they are carried whole, or listed as left out")
}

// layer decomposes one tensor.
func (r *extracting) layer(ctx context.Context, p *pair, v view) error {
	rule := r.options.Rule
	if r.ranks != nil {
		if r.ranks[p.name] == 0 {
			r.report.Skipped = append(r.report.Skipped, Skipped{p.name, whyBudget})
			return nil
		}
		rule = FixedRank{r.ranks[p.name]}
	}
	u, err := p.difference(ctx, v.rows, v.cols, r.options.Workers)
	if err != nil {
		return err
	}
	if f, ok := rule.(NoiseFloor); ok {
		f.Sigma = u.noise
		rule = f
	}
	svd := r.options.SVD
	svd.Workers = r.options.Workers
	d, err := TruncatedSVD(ctx, u.dense, u.energy, rule, svd)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if d.K == 0 {
		r.report.Skipped = append(r.report.Skipped, Skipped{p.name, whyUnchanged})
		return nil
	}
	left, right := d.Factors() // rows×k, k×cols
	squares, err := u.dense.ResidualSquares(ctx, left, right, d.K)
	if err != nil {
		return err
	}
	rounded := squares
	if r.options.DType != dtype.F32 && r.options.DType != dtype.F64 {
		if rounded, err = u.dense.ResidualSquares(ctx, roundTo(r.options.DType, left), roundTo(r.options.DType, right), d.K); err != nil {
			return err
		}
	}
	if err := r.store(v, d.K, left, right); err != nil {
		return err
	}
	m, n := v.rows, v.cols
	if v.transposed {
		m, n = n, m
	}
	l := ExtractedLayer{
		Module: v.module, Kind: string(v.kind), M: m, N: n, Rank: d.K, Energy: 1 - squares/u.energy,
		Error: math.Sqrt(squares / u.energy), Rounded: math.Sqrt(rounded / u.energy), Frobenius: math.Sqrt(u.energy),
		NoiseEdge: NoiseFloor{Sigma: u.noise}.Edge(v.rows, v.cols), SingularValues: d.S, Ranks: ranksOf(d),
		energies: energies{u.energy, u.energy - squares, squares, rounded},
	}
	if u.baseNorm > 0 {
		l.RelativeNorm = l.Frobenius / u.baseNorm
	}
	r.report.Layers = append(r.report.Layers, l)
	r.report.Products += d.Products
	r.report.Flops += d.Flops
	return nil
}

// store puts the factors of a layer into the spool: A and B of the layer's kind.
func (r *extracting) store(v view, k int, left, right []float32) error {
	a, b := right, left
	shapeA, shapeB := []uint64{uint64(k), uint64(v.cols)}, []uint64{uint64(v.rows), uint64(k)}
	switch {
	case v.kind == format.Conv: // A r×in×k…, B out×r×1…
		shapeA = append([]uint64{uint64(k)}, v.shape[1:]...)
		for range v.shape[2:] {
			shapeB = append(shapeB, 1)
		}
	case v.transposed: // the tensor is n×m: Δᵀ = left·right, so B = rightᵀ and A = leftᵀ
		a, b = transpose(left, v.rows, k), transpose(right, k, v.cols)
		shapeA, shapeB = []uint64{uint64(k), uint64(v.rows)}, []uint64{uint64(v.cols), uint64(k)}
	}
	nameA, nameB := v.module+".lora_A.weight", v.module+".lora_B.weight"
	if v.kind == format.Embedding {
		nameA, nameB = v.module+".lora_embedding_A", v.module+".lora_embedding_B"
	}
	d := r.options.DType
	iA, err := r.spool.add(nameA, d, shapeA, encode(d, a))
	if err != nil {
		return err
	}
	iB, err := r.spool.add(nameB, d, shapeB, encode(d, b))
	if err != nil {
		return err
	}
	if v.kind == format.Conv {
		r.adapter.Requires = append(r.adapter.Requires, format.Requirement{Feature: format.FeatureConvolution, Where: v.module})
	}
	r.adapter.Layers = append(r.adapter.Layers, format.Layer{
		Module: v.module, Kind: v.kind, Rank: k, Alpha: float64(k), Scaling: format.AlphaOverR,
		Roles: map[format.Role]int{format.RoleA: iA, format.RoleB: iB},
	})
	return nil
}

// beside carries a tensor whole, or lists it as left out.
func (r *extracting) beside(ctx context.Context, p *pair, why string) error {
	if r.options.Only {
		r.report.Skipped = append(r.report.Skipped, Skipped{p.name, "differs, and is " + why + ", which low rank does not hold"})
		return nil
	}
	t := p.tuned.ref.Tensor
	i, err := r.spool.copy(ctx, p.name, t.DType, t.Shape, p.tuned.file.Data, t.Off, t.NBytes)
	if err != nil {
		return fault.InFile(err, p.tuned.file.Path)
	}
	r.adapter.Beside = append(r.adapter.Beside, format.Beside{Action: format.Replace, Target: p.name, Tensor: i})
	r.report.Beside = append(r.report.Beside, BesideReport{p.name, why, t.NBytes})
	return nil
}

// total sums the report up.
func (r *extracting) total() {
	var sum energies
	byRank := make([]RankEnergy, len(reportedRanks))
	for i, k := range reportedRanks {
		byRank[i].Rank = k
	}
	for i := range r.report.Layers {
		l := &r.report.Layers[i]
		sum.all += l.energies.all
		sum.kept += l.energies.kept
		sum.left += l.energies.left
		sum.rounded += l.energies.rounded
		for j, k := range l.Ranks {
			byRank[j].Energy += k.Energy * l.energies.all
			byRank[j].AtLeast = byRank[j].AtLeast || k.AtLeast
		}
	}
	for i := range r.spool.manifest.Tensors {
		r.report.Bytes += r.spool.manifest.Tensors[i].NBytes()
	}
	if sum.all == 0 {
		return
	}
	for i := range byRank {
		byRank[i].Energy /= sum.all
	}
	r.report.Energy, r.report.Error, r.report.Rounded = sum.kept/sum.all, math.Sqrt(sum.left/sum.all), math.Sqrt(sum.rounded/sum.all)
	r.report.Ranks = byRank
}

// ranksOf is the table of what fixed ranks give.
func ranksOf(d *Decomposition) []RankEnergy {
	table := make([]RankEnergy, len(reportedRanks))
	for i, k := range reportedRanks {
		have := min(k, len(d.Estimates))
		table[i] = RankEnergy{Rank: k, Energy: min(1, sumSquares(d.Estimates[:have])/d.Energy), AtLeast: !d.Complete && k > d.K}
	}
	return table
}

func transpose(x []float32, rows, cols int) []float32 {
	y := make([]float32, len(x))
	for i := range rows {
		for j := range cols {
			y[j*rows+i] = x[i*cols+j]
		}
	}
	return y
}

// encode stores values as d, each rounded once.
func encode(d dtype.Type, x []float32) []byte {
	b := make([]byte, len(x)*d.Size())
	for i, v := range x {
		dtype.Store(d, b, i, float64(v))
	}
	return b
}

// roundTo returns the values that encode stores.
func roundTo(d dtype.Type, x []float32) []float32 {
	y := make([]float32, len(x))
	dtype.Widen(y, d, encode(d, x))
	return y
}
