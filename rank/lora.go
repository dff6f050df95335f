package rank

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
)

// LoRAOptions says how ToLoRA makes thin factors of other updates. The zero value is ready to use.
type LoRAOptions struct {
	// Rule chooses the rank of each new layer by its singular values, as in an extraction. nil
	// keeps the whole update, by an identity; a layer whose identity takes as many numbers as the
	// weight itself is then an error.
	Rule Rule
	// DType is that of the new factors: F64, F32, F16 or BF16; 0 means F32. Truncated factors
	// cannot be F64.
	DType dtype.Type
	// Base lists the tensors of the model, by name and shape. It tells the kernel of a convolution
	// that the adapter does not tell. nil takes such a layer for a linear one.
	Base []format.Tensor

	Path    string        // the output's path; new factors wait beside it
	Output  output.Output // or in its scratch space; with neither they wait in a temporary file
	Workers int           // goroutines; 0 means one per processor
	SVD     Options       // of truncated layers
	Layer   func(module string)
}

// LoRAReport describes the layers that ToLoRA has made.
type LoRAReport struct {
	Layers   []LoRALayer `json:"layers"`
	Warnings []string    `json:"warnings"`
}

// LoRALayer is a layer of thin factors.
type LoRALayer struct {
	Module string `json:"module"`
	Was    string `json:"was"` // the kind that the layer had, or "difference"
	M      int    `json:"m"`   // rows of ΔW
	N      int    `json:"n"`   // columns
	Rank   int    `json:"rank"`
	// IsExact says that the stored factors are ΔW exactly. Otherwise Error is ‖ΔW − s·B·A‖_F
	// relative to ‖ΔW‖_F, measured with the factors as stored; that of a truncation also counts
	// what float32 cannot hold of ΔW.
	IsExact bool    `json:"exact"`
	Error   float64 `json:"error"`
}

// ToLoRA returns the adapter of src with thin factors in place of all updates that are none
// (spec/METHODS.md): LoHa, LoKr, convolutions with a core, and differences of whole weights.
// Differences of biases and norms stay; so do magnitudes. The adapter must be valid. A scaling
// (IA³) depends on the base, and is an error of kind format.ErrUnsupported, as are methods that src
// only carries. The caller closes the result before src.
func ToLoRA(ctx context.Context, src format.Source, o LoRAOptions) (format.Source, *LoRAReport, error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	m := src.Manifest()
	if len(m.Adapters) != 1 {
		return nil, nil, fault.New(fault.Unsupported, "this is a bundle of %d adapters, want one", len(m.Adapters))
	}
	spool, err := newSpool(o.Path, o.Output)
	if err != nil {
		return nil, nil, err
	}
	x := &thinning{
		remake: &remake{sources: []format.Source{src}, spool: spool},
		src:    src, options: o, dtype: cmp.Or(o.DType, dtype.F32),
		report: &LoRAReport{Layers: []LoRALayer{}, Warnings: []string{}},
	}
	if err := x.all(ctx); err != nil {
		spool.Close()
		return nil, nil, err
	}
	return x.remake, x.report, nil
}

func (o *LoRAOptions) check() error {
	if !slices.Contains([]dtype.Type{dtype.Invalid, dtype.F64, dtype.F32, dtype.F16, dtype.BF16}, o.DType) ||
		o.DType == dtype.F64 && o.Rule != nil {
		return fmt.Errorf("LoRAOptions.DType is %v, want F32, F16, BF16, or F64 without a rule", o.DType)
	}
	return errors.Join(checkRule(o.Rule), o.SVD.check())
}

// thinning is one call of ToLoRA.
type thinning struct {
	*remake
	src     format.Source
	options LoRAOptions
	dtype   dtype.Type
	report  *LoRAReport

	kernels map[string][]uint64 // of modules in the base
	guessed []string            // layers whose kernel nothing tells
	unknown []string            // those among them whose names are those of convolutions
}

// thick is an update to be made thin: a layer, or a difference.
type thick struct {
	module string
	layer  *format.Layer  // nil for a difference
	beside *format.Beside // nil for a layer
	rows   int
	cols   int
	kernel []uint64
	places uint64 // in the kernel
}

func (x *thinning) all(ctx context.Context) error {
	m := x.src.Manifest()
	a := m.Adapters[0]
	var thicks []thick
	var layers []format.Layer
	for i := range a.Layers {
		if l := &a.Layers[i]; delta.IsMethod(l) {
			thicks = append(thicks, thick{module: l.Module, layer: l})
		} else {
			layers = append(layers, *l)
		}
	}
	var beside []format.Beside
	for i := range a.Beside {
		b := &a.Beside[i]
		if b.Action == format.Difference && len(m.Tensors[b.Tensor].Shape) > 1 {
			thicks = append(thicks, thick{module: naming.Module(b.Target), beside: b})
		} else {
			beside = append(beside, *b)
		}
	}
	if err := x.refuse(&a, layers, thicks); err != nil {
		return err
	}
	x.manifest = *m
	a.Beside = beside
	a.Requires = slices.DeleteFunc(slices.Clone(a.Requires), func(q format.Requirement) bool { return isThinned(q, beside) })
	x.findKernels(thicks)
	x.keepRest(&a, layers, thicks)
	for i := range thicks {
		thicks[i].kernel = x.kernelOf(&thicks[i])
	}
	if x.unknown != nil {
		return fault.New(fault.Unsupported, "the file does not say which kernel its convolutions have: %s", fault.List(x.unknown, 3)).
			WithHint("name the model that the adapter was trained on (LoRAOptions.Base)")
	}
	for i := range thicks {
		if err := x.one(ctx, &a, &thicks[i]); err != nil {
			return err
		}
		if x.options.Layer != nil {
			x.options.Layer(thicks[i].module)
		}
	}
	x.finish(a)
	return format.Validate(&x.manifest)
}

// isThinned reports whether a requirement goes away with the updates that are made thin.
func isThinned(q format.Requirement, beside []format.Beside) bool {
	switch q.Feature {
	case format.FeatureHadamard, format.FeatureKronecker, format.FeatureTucker:
		return true
	case format.FeatureDifference:
		return !slices.ContainsFunc(beside, func(b format.Beside) bool { return b.Target == q.Where })
	}
	return false
}

// refuse names what no thin factors can say.
func (x *thinning) refuse(a *format.Adapter, layers []format.Layer, thicks []thick) error {
	plain := make(map[string]bool)
	for i := range layers {
		plain[layers[i].Module] = true
	}
	for _, t := range thicks {
		if t.layer != nil && (t.layer.Kind == format.OutputScaling || t.layer.Kind == format.InputScaling) {
			return fault.New(fault.Unsupported, "%q is IA³, which scales the weights of the base: no LoRA is equal to it on every base", t.module).
				WithHint("merge it, and extract an adapter from the base and the result")
		}
		if plain[t.module] {
			return fault.New(fault.Unsupported, "%q has a difference of its whole weight beside its LoRA, and a layer has one pair of factors", t.module).
				WithHint("merge it, and extract an adapter from the base and the result")
		}
		plain[t.module] = true
	}
	for _, q := range a.Requires {
		if q.Feature == format.FeatureLyCORIS {
			return fault.New(fault.Unsupported, "the adapter holds tensors of %s, which are no thin product and are not understood here", q.Where).
				WithHint("merge it with the program that made it, and extract an adapter from the base and the result")
		}
	}
	return nil
}

// findKernels finds the modules in the base, if there is one.
func (x *thinning) findKernels(thicks []thick) {
	m := x.src.Manifest()
	x.kernels = make(map[string][]uint64)
	if len(x.options.Base) == 0 {
		return
	}
	shapes := make(map[string][]uint64, len(x.options.Base))
	names := make([]string, len(x.options.Base))
	for i, t := range x.options.Base {
		names[i], shapes[t.Name] = t.Name, t.Shape
	}
	var updates []naming.Update
	for i := range thicks {
		u := naming.Update{Name: thicks[i].module}
		u.Rows, u.Columns = thicks[i].size(m)
		updates = append(updates, u)
	}
	index := naming.Index(names)
	found := naming.FindSpread(index, updates, func(plain string) []uint64 { return shapes[index.Actual(plain)] }, nil)
	know := func(module, weight string) {
		if shape := shapes[weight]; len(shape) >= 2 {
			x.kernels[module] = shape[2:]
		}
	}
	for module, at := range found.Slices {
		know(module, index.Actual(at[0].Weight))
	}
	for _, t := range thicks {
		know(t.module, t.module+".weight")
	}
}

func (t *thick) size(m *format.Manifest) (rows, cols uint64) {
	if t.layer != nil {
		return delta.Size(t.layer, m.Tensors)
	}
	shape := m.Tensors[t.beside.Tensor].Shape
	n := uint64(m.Tensors[t.beside.Tensor].Elements())
	return shape[0], n / max(1, shape[0])
}

// keepRest lists the tensors of the source that stay, and gives the layers and the tensors beside
// them their new numbers.
func (x *thinning) keepRest(a *format.Adapter, layers []format.Layer, thicks []thick) {
	x.manifest.Tensors = nil
	a.Layers = nil
	for _, l := range layers {
		l.Roles = x.keepRoles(0, &l, slices.Collect(maps.Keys(l.Roles))...)
		a.Layers = append(a.Layers, l)
	}
	for i := range a.Beside {
		a.Beside[i].Tensor = x.keep(0, a.Beside[i].Tensor)
	}
	for i := range thicks {
		t := &thicks[i]
		if t.layer == nil {
			continue
		}
		l := *t.layer
		l.Roles = x.keepRoles(0, t.layer, format.RoleMagnitude, format.RoleInputMagnitude)
		a.Layers = append(a.Layers, l) // one completes it
	}
}

// kernelOf returns the kernel of an update: as the adapter tells it, or the base.
func (x *thinning) kernelOf(t *thick) []uint64 {
	tensors := x.src.Manifest().Tensors
	if t.layer == nil {
		return tensors[t.beside.Tensor].Shape[2:]
	}
	for _, role := range []format.Role{format.RoleCore, format.RoleT1, format.RoleT2, format.RoleW2, format.RoleW1B, format.RoleW2B} {
		if i, ok := t.layer.Roles[role]; ok && len(tensors[i].Shape) > 2 {
			return tensors[i].Shape[2:]
		}
	}
	kernel, ok := x.kernels[t.module]
	_, isWhole := t.layer.Roles[format.RoleW2]
	if !ok && !isWhole && naming.IsConvolution(t.module) {
		x.unknown = append(x.unknown, t.module)
	} else if !ok && !isWhole {
		x.guessed = append(x.guessed, t.module)
	}
	return kernel
}

// one makes an update thin.
func (x *thinning) one(ctx context.Context, a *format.Adapter, t *thick) error {
	rows, cols := t.size(x.src.Manifest())
	if rows == 0 || cols == 0 {
		return fault.New(fault.Corrupt, "the update of %q has no elements", t.module)
	}
	t.rows, t.cols, t.places = int(rows), int(cols), 1
	for _, k := range t.kernel {
		t.places *= k
	}
	if t.places == 0 || cols%t.places != 0 {
		return fault.New(fault.Mismatch, "%q: ΔW is %d×%d, and the base's weight has a kernel of %d", t.module, rows, cols, t.kernel)
	}
	d, err := x.read(ctx, t)
	if err != nil {
		return err
	}
	if n := d.NonFinite(); n > 0 {
		return fault.New(fault.Check, "the factors of %q hold %s that %s NaN or infinite", t.module, fault.Count(n, "value"), fault.Choose(n, "is", "are")).
			WithHint("training diverged; use an earlier checkpoint of the adapter")
	}
	made, err := x.factors(ctx, t, d)
	if err != nil {
		return err
	}
	return x.store(a, t, made)
}

// read returns ΔW/s.
func (x *thinning) read(ctx context.Context, t *thick) (*delta.Delta, error) {
	if t.layer == nil {
		return delta.ReadWhole(ctx, x.src, t.beside.Tensor, 1, t.cols)
	}
	return delta.Read(ctx, x.src, t.layer, 1, t.rows, t.cols, 1)
}

// made are the factors of a layer, as stored.
type made struct {
	rank    int
	b, a    []byte
	isExact bool
	error   float64 // relative to ‖ΔW‖
}

// factors makes factors by an identity, or by a truncation where the rule keeps less.
func (x *thinning) factors(ctx context.Context, t *thick, d *delta.Delta) (*made, error) {
	rank := d.ThinRank()
	if x.options.Rule == nil {
		if rank > format.MaxRank || int64(rank)*int64(t.rows+t.cols) >= int64(t.rows)*int64(t.cols) {
			return nil, fault.New(fault.Unsupported, "%q: a LoRA equal to it has the rank %d, and takes more numbers than its weight, %d×%d", t.module, rank, t.rows, t.cols).
				WithHint("choose a rank or an error with LoRAOptions.Rule")
		}
		return x.identity(ctx, d)
	}
	u, lost, err := x.dense(ctx, t, d)
	if err != nil {
		return nil, err
	}
	svd := x.options.SVD
	svd.Workers = x.options.Workers
	s, err := truncate(ctx, u, t.module, x.options.Rule, x.dtype, svd)
	if err != nil {
		return nil, err
	}
	e := (norm(s.rounded) + norm(lost)) / norm(s.Energy)
	if rank <= max(1, s.K) {
		whole, err := x.identity(ctx, d)
		if err != nil || whole.error <= e {
			return whole, err
		}
	}
	if s.K == 0 { // ΔW is zero
		return &made{rank: 1, b: encode(x.dtype, make([]float32, t.rows)), a: encode(x.dtype, make([]float32, t.cols)), isExact: true}, nil
	}
	return &made{rank: s.K, b: encode(x.dtype, s.left), a: encode(x.dtype, s.right), error: e}, nil
}

// dense forms ΔW/s in float32. lost is the square of the norm of what that rounds away.
func (x *thinning) dense(ctx context.Context, t *thick, d *delta.Delta) (u *update, lost float64, err error) {
	u = &update{dense: &Dense{M: t.rows, N: t.cols, Data: make([]float32, t.rows*t.cols), Workers: x.options.Workers}}
	energies, losses := make([]float64, t.rows), make([]float64, t.rows)
	err = x.eachRow(ctx, d, func(i int, row []float64) {
		energies[i] = sumSquares(row)
		for j, v := range row {
			u.dense.Data[i*t.cols+j] = float32(v)
			change := v - float64(float32(v))
			losses[i] += change * change
		}
	})
	for i, e := range energies {
		u.energy, lost = u.energy+e, lost+losses[i]
	}
	if norm(u.energy) > maxNorm || u.energy-u.energy != 0 {
		return nil, 0, fault.New(fault.Unsupported, "the update of %q has the norm %.3g, but the decomposition in float32 takes at most %.3g", t.module, norm(u.energy), maxNorm)
	}
	return u, lost, err
}

// identity stores the factors of an identity, and measures the error of rounding them.
func (x *thinning) identity(ctx context.Context, d *delta.Delta) (*made, error) {
	f := d.Thin()
	b, isB := x.round(f.B)
	a, isA := x.round(f.A)
	m := &made{rank: f.Rank, b: b, a: a, isExact: f.IsExact && isA && isB}
	if m.isExact {
		return m, ctx.Err()
	}
	storedB, storedA := make([]float64, len(f.B)), make([]float64, len(f.A))
	dtype.Widen64(storedB, x.dtype, b)
	dtype.Widen64(storedA, x.dtype, a)
	losses, energies := make([]float64, d.Rows()), make([]float64, d.Rows())
	err := x.eachRow(ctx, d, func(i int, row []float64) {
		energies[i] = sumSquares(row)
		dense.SubtractProduct(row, storedB[i*f.Rank:(i+1)*f.Rank], storedA, 1, f.Rank, d.Cols())
		losses[i] = sumSquares(row)
	})
	var lost, energy float64
	for i := range losses {
		lost, energy = lost+losses[i], energy+energies[i]
	}
	if energy > 0 {
		m.error = norm(lost / energy)
	}
	if err == nil && m.error-m.error != 0 {
		return nil, fault.New(fault.Unsupported, "the factors do not fit the range of %v", x.dtype).
			WithHint("store them with LoRAOptions.DType=f32")
	}
	return m, err
}

// eachRow calls f with every row of ΔW/s, on all workers. f may change the row.
func (x *thinning) eachRow(ctx context.Context, d *delta.Delta, f func(i int, row []float64)) error {
	type scratch struct{ row, buf []float64 }
	workers := make([]scratch, parallel.Workers(x.options.Workers))
	return parallel.For(ctx, len(workers), d.Rows(), func(w, i int) error {
		s := &workers[w]
		if s.row == nil {
			s.row = make([]float64, d.Cols())
		}
		clear(s.row)
		d.AddRow(s.row, nil, i, &s.buf)
		f(i, s.row)
		return nil
	})
}

// round stores values, and reports whether it has rounded none.
func (x *thinning) round(values []float64) (stored []byte, isExact bool) {
	stored, isExact = make([]byte, len(values)*x.dtype.Size()), true
	for i, v := range values {
		dtype.Store(x.dtype, stored, i, v)
		isExact = isExact && dtype.Load(x.dtype, stored, i) == v
	}
	return stored, isExact
}

// store writes the factors of an update to the spool and completes its layer.
func (x *thinning) store(a *format.Adapter, t *thick, f *made) error {
	shapeA, shapeB := []uint64{uint64(f.rank), uint64(t.cols)}, []uint64{uint64(t.rows), uint64(f.rank)}
	l := format.Layer{Module: t.module, Kind: format.Linear, Scaling: format.Fixed, Fixed: 1, Roles: make(map[format.Role]int)}
	was := string(format.Difference)
	if t.layer != nil {
		l, was = *t.layer, string(t.layer.Kind)
	}
	at := slices.IndexFunc(a.Layers, func(l format.Layer) bool { return l.Module == t.module })
	if at >= 0 {
		l.Roles = a.Layers[at].Roles
	}
	l.Kind = format.Linear
	if len(t.kernel) > 0 {
		l.Kind = format.Conv
		for range t.kernel {
			shapeB = append(shapeB, 1)
		}
		shapeA = append([]uint64{shapeA[0], shapeA[1] / t.places}, t.kernel...)
		a.Requires = append(a.Requires, format.Requirement{Feature: format.FeatureConvolution, Where: t.module})
	}
	// The scale s stays: alpha/r with the new rank.
	setScale(&l, f.rank, l.Scale())
	iA, err := x.spool.add(t.module+".lora_A.weight", x.dtype, shapeA, f.a)
	if err != nil {
		return err
	}
	iB, err := x.spool.add(t.module+".lora_B.weight", x.dtype, shapeB, f.b)
	if err != nil {
		return err
	}
	l.Roles[format.RoleA], l.Roles[format.RoleB] = x.take(iA), x.take(iB)
	if at >= 0 {
		a.Layers[at] = l
	} else {
		a.Layers = append(a.Layers, l)
	}
	x.report.Layers = append(x.report.Layers, LoRALayer{
		Module: t.module, Was: was, M: t.rows, N: t.cols, Rank: f.rank, IsExact: f.isExact, Error: f.error,
	})
	return nil
}

// finish completes the manifest.
func (x *thinning) finish(a format.Adapter) {
	slices.SortFunc(a.Layers, func(l, m format.Layer) int { return cmp.Compare(l.Module, m.Module) })
	slices.SortFunc(a.Beside, func(b, c format.Beside) int { return b.Tensor - c.Tensor })
	a.Requires = sortedRequires(a.Requires)
	a.Method = format.MethodLoRA
	for _, q := range a.Requires {
		if q.Feature == format.FeatureDoRA {
			a.Method = format.MethodDoRA
		}
	}
	if slices.ContainsFunc(a.Beside, func(b format.Beside) bool { return b.Action == format.Difference }) {
		a.Method = format.OtherMethod("lycoris")
	}
	x.manifest.Adapters = []format.Adapter{a}
	x.manifest.Attachments = nil
	x.attachCard(0)
	if len(x.guessed) > 0 {
		slices.Sort(x.guessed)
		x.report.Warnings = append(x.report.Warnings, fmt.Sprintf("nothing tells whether %s linear or a convolution, and linear is assumed; LoRAOptions.Base tells: %s",
			fault.Choose(len(x.guessed), "a layer is", "some layers are"), fault.List(x.guessed, 3)))
	}
}
