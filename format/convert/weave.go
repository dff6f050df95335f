package convert

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Two namespaces can divide the rows of a module in different ways. A module that becomes several
// shares its A with them, and each has its rows of B. Modules that become one have their A stacked,
// and their B stand in a block-diagonal matrix; where their A are equal, one is enough. Either way
// no number is rounded.

// newLayer is a layer of a new file.
type newLayer struct {
	name      string
	component string // as diffusers calls it
	kind      format.Kind
	rank      int
	alpha     float64
	scaling   format.Scaling // Fixed only until the scale alpha is folded into the factors
	alphaAt   int            // the source's tensor with alpha, -1 if it has none
	factors   map[format.Role]*factor
}

// weaver makes the layers of a new file.
type weaver struct {
	ctx    context.Context
	src    format.Source
	m      *format.Manifest
	layers map[string]*format.Layer
	diffs  map[string]map[string]int   // differences: by module, "weight" or "bias"
	keeps  map[string]map[string][]int // columns of B that a new module keeps: by layer, by module
	rounds bool                        // scales may be joined by rounding
}

func newWeaver(ctx context.Context, src format.Source) *weaver {
	w := &weaver{ctx: ctx, src: src, m: src.Manifest(), layers: make(map[string]*format.Layer),
		diffs: make(map[string]map[string]int), keeps: make(map[string]map[string][]int)}
	a := &w.m.Adapters[0]
	for i := range a.Layers {
		w.layers[a.Layers[i].Module] = &a.Layers[i]
	}
	for _, b := range a.Beside {
		module := naming.Module(b.Target)
		if w.diffs[module] == nil {
			w.diffs[module] = make(map[string]int)
		}
		w.diffs[module][strings.TrimPrefix(b.Target, module+".")] = b.Tensor
	}
	return w
}

// updates returns the modules of the adapter and the sizes of their updates.
func (w *weaver) updates() []naming.Update {
	modules := make(map[string]bool)
	for module := range w.layers {
		modules[module] = true
	}
	for module := range w.diffs {
		modules[module] = true
	}
	var all []naming.Update
	for _, module := range slices.Sorted(maps.Keys(modules)) {
		rows, columns := w.size(module)
		all = append(all, naming.Update{Name: module, Rows: rows, Columns: columns})
	}
	return all
}

// size returns the rows and columns of the update of a module. A dimension that the adapter does
// not tell is 1.
func (w *weaver) size(module string) (rows, columns uint64) {
	if l := w.layers[module]; l != nil {
		return sizeOf(w.m, l)
	}
	if i, ok := w.diffs[module]["weight"]; ok {
		if shape := w.shape(i); len(shape) > 0 {
			return shape[0], product(shape[1:])
		}
		return 1, 1
	}
	return product(w.shape(w.diffs[module]["bias"])), 1
}

func (w *weaver) shape(i int) []uint64 { return w.m.Tensors[i].Shape }

// weave makes the layers of all modules.
func (w *weaver) weave(modules []naming.Respelled) ([]*newLayer, error) {
	if err := w.divide(modules); err != nil {
		return nil, err
	}
	var all []*newLayer
	for i := range modules {
		l, err := w.layer(&modules[i])
		if err != nil {
			return nil, err
		}
		if l != nil {
			all = append(all, l)
		}
	}
	return all, nil
}

// divide decides which columns of B the new modules keep where one layer becomes several. Usually
// these are all. But if no column is used by two of the modules, as in a module that was joined
// before, each keeps its own.
func (w *weaver) divide(modules []naming.Respelled) error {
	parts := make(map[string][]*naming.Respelled)
	for i := range modules {
		for _, p := range modules[i].Pieces {
			if n := len(parts[p.Module]); n == 0 || parts[p.Module][n-1] != &modules[i] {
				parts[p.Module] = append(parts[p.Module], &modules[i])
			}
		}
	}
	for module, targets := range parts {
		l := w.layers[module]
		if len(targets) < 2 || l == nil || !isLoRA(l) || len(l.Roles) > 3 ||
			len(l.Roles) == 3 && !hasRole(l.Roles, format.RoleAlpha) {
			continue // a module with more than factors stays, whatever its factors are
		}
		keeps, err := w.blocksOf(l, targets)
		if err != nil {
			return err
		}
		if keeps != nil {
			w.keeps[module] = keeps
		}
	}
	return nil
}

// blocksOf returns the columns of B that are not zero in the rows of each module; nil if two
// modules share a column, or if dropping a column could drop a NaN.
func (w *weaver) blocksOf(l *format.Layer, targets []*naming.Respelled) (map[string][]int, error) {
	ia, ib := l.Roles[format.RoleA], l.Roles[format.RoleB]
	a, err := dataOf(w.src, ia)
	if err != nil {
		return nil, err
	}
	b, err := dataOf(w.src, ib)
	if err != nil {
		return nil, err
	}
	t := &w.m.Tensors[ib]
	if !t.DType.IsFloat() || !w.m.Tensors[ia].DType.IsFloat() ||
		dtype.CountNonFinite(w.m.Tensors[ia].DType, a) > 0 {
		return nil, nil
	}
	keeps, owner := make(map[string][]int), make(map[int]string)
	for _, target := range targets {
		keeps[target.Name] = []int{}
		for k := range l.Rank {
			isZero := true
			for _, p := range target.Pieces {
				for row := p.From; p.Module == l.Module && isZero && row < p.From+p.Rows; row++ {
					isZero = dtype.Load(t.DType, b, int(row)*l.Rank+k) == 0
				}
			}
			if isZero {
				continue
			}
			if owner[k] != "" {
				return nil, nil
			}
			owner[k] = target.Name
			keeps[target.Name] = append(keeps[target.Name], k)
		}
	}
	if len(owner) == 0 {
		return nil, nil
	}
	return keeps, nil
}

// layer makes the layer of a module; nil if the adapter does not change it after all.
func (w *weaver) layer(to *naming.Respelled) (*newLayer, error) {
	n := &newLayer{name: to.Name, component: to.Component, alphaAt: -1,
		factors: make(map[format.Role]*factor)}
	isWhole := w.isWhole(to)
	if err := w.joinDifferences(n, to, isWhole); err != nil {
		return nil, err
	}
	first := w.firstLayer(to)
	if first == nil {
		return n, nil
	}
	if n.factors[roleDiff] != nil {
		return nil, fault.New(fault.Unsupported, "%q would have both factors and a difference", to.Name)
	}
	n.kind, n.rank, n.alpha, n.scaling = first.Kind, first.Rank, first.Alpha, first.Scaling
	if i, ok := first.Roles[format.RoleAlpha]; ok {
		n.alphaAt = i
	}
	if !isWhole {
		n, err := w.join(n, to)
		if n != nil {
			n.fit(to.Points)
		}
		return n, err
	}
	for role, i := range first.Roles {
		if role != format.RoleAlpha {
			n.factors[role] = wholeOf(w.m, i)
		}
	}
	n.fit(to.Points)
	if first.Scaling == format.Fixed {
		return n, w.setScale(n, first.Fixed, first.Rank)
	}
	return n, nil
}

// setScale gives a layer its scale: by an alpha, unless the factors will carry it.
func (w *weaver) setScale(n *newLayer, scale float64, rank int) error {
	if !w.rounds {
		return n.setScale(scale, rank)
	}
	n.scaling, n.alpha, n.rank = format.Fixed, scale, rank
	return nil
}

// fit gives the factors of a plain layer as many dimensions as the weight has, if its kernel is a
// single point. Some programs want them so; A and B are the same matrices.
func (n *newLayer) fit(points int) {
	a, b := n.factors[roleA], n.factors[roleB]
	if points == 0 || a == nil || b == nil || product(a.shape[1:]) != a.shape[1] {
		return
	}
	for _, f := range []*factor{a, b} {
		f.shape = slices.Clone(f.shape[:2])
		for len(f.shape) < points {
			f.shape = append(f.shape, 1)
		}
	}
	if n.kind = format.Linear; points > 2 {
		n.kind = format.Conv
	}
}

// firstLayer returns the first of the layers that a module is made of; nil if it has differences
// alone.
func (w *weaver) firstLayer(to *naming.Respelled) *format.Layer {
	for _, p := range to.Pieces {
		if l := w.layers[p.Module]; l != nil {
			return l
		}
	}
	return nil
}

// roleDiff and roleDiffBias are the roles of differences in a newLayer.
const (
	roleDiff     format.Role = "difference"
	roleDiffBias format.Role = "difference of the bias"
)

// joinDifferences joins the differences of a module by rows. Rows without one have zeros.
func (w *weaver) joinDifferences(n *newLayer, to *naming.Respelled, isWhole bool) error {
	for parameter, role := range map[string]format.Role{"weight": roleDiff, "bias": roleDiffBias} {
		f := &factor{shape: []uint64{to.Rows}}
		for _, p := range to.Pieces {
			i, ok := w.diffs[p.Module][parameter]
			if !ok {
				continue
			}
			if isWhole {
				f = wholeOf(w.m, i)
				break
			}
			f.blocks = append(f.blocks, block{
				tensor: i, times: 1, row: int(p.At), rows: count(int(p.From), int(p.Rows)),
			})
			f.shape = append(f.shape[:1], w.shape(i)[1:]...)
		}
		if len(f.blocks) == 0 {
			continue
		}
		var err error
		if f.dtype, err = w.commonOf(f); err != nil {
			return err
		}
		n.factors[role] = f
	}
	return nil
}

// isWhole reports whether a new module is a module of the adapter, row for row.
func (w *weaver) isWhole(to *naming.Respelled) bool {
	p := to.Pieces[0]
	rows, _ := w.size(p.Module)
	return len(to.Pieces) == 1 && p.At == 0 && p.From == 0 && p.Rows == to.Rows && rows == to.Rows
}

// isLoRA reports whether a layer is a thin product, whose rows can be divided.
func isLoRA(l *format.Layer) bool {
	return (l.Kind == format.Linear || l.Kind == format.Conv) && !hasRole(l.Roles, format.RoleCore)
}

// group is an A in a joined layer, and the columns of its B.
type group struct {
	layer *format.Layer
	keep  []int // rows of A
	sum   [sha256.Size]byte
	at    int // the first row in the joined A
}

// join makes a layer of rows of one or several layers.
func (w *weaver) join(n *newLayer, to *naming.Respelled) (*newLayer, error) {
	scale := w.scaleOf(to)
	var groups []*group
	var pieces []joint
	rank := 0
	for _, p := range to.Pieces {
		l := w.layers[p.Module]
		if l == nil {
			continue // the module has only a difference of its bias
		}
		if !isLoRA(l) {
			return nil, fault.New(fault.Unsupported, "layer %q of kind %s becomes a part of %q or is "+
				"divided, which only plain LoRA can be", l.Module, l.Kind, to.Name)
		}
		keep, isDivided := w.keeps[p.Module][to.Name], w.keeps[p.Module] != nil
		if !isDivided {
			keep = count(0, l.Rank)
		}
		if len(keep) == 0 {
			continue
		}
		g, err := w.groupOf(&groups, l, keep)
		if err != nil {
			return nil, err
		}
		if g.at < 0 {
			g.at, rank = rank, rank+len(keep)
		}
		pieces = append(pieces, joint{p, l, g, keep})
	}
	if len(groups) == 0 {
		if n.kind = ""; len(n.factors) == 0 {
			return nil, nil
		}
		return n, nil
	}
	n.rank = rank
	if err := w.setScale(n, scale, rank); err != nil {
		return nil, err
	}
	if err := w.joinFactors(n, to, groups, pieces, scale); err != nil {
		return nil, err
	}
	return n, nil
}

// joint is a piece of a joined layer.
type joint struct {
	naming.Piece
	layer *format.Layer
	in    *group
	keep  []int
}

// groupOf returns the group of a layer's A, a new one if no A in a group is equal to it.
func (w *weaver) groupOf(groups *[]*group, l *format.Layer, keep []int) (*group, error) {
	t := &w.m.Tensors[l.Roles[format.RoleA]]
	data, err := dataOf(w.src, l.Roles[format.RoleA])
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	fmt.Fprint(h, t.DType, len(keep))
	line := len(data) / l.Rank
	for _, k := range keep {
		h.Write(data[k*line : (k+1)*line])
	}
	g := &group{layer: l, keep: keep, at: -1}
	h.Sum(g.sum[:0])
	for _, other := range *groups {
		if other.sum == g.sum {
			return other, nil
		}
	}
	*groups = append(*groups, g)
	return g, nil
}

// joinFactors makes the factors of a joined layer.
func (w *weaver) joinFactors(
	n *newLayer, to *naming.Respelled, groups []*group, pieces []joint, scale float64,
) error {
	var err error
	a := &factor{}
	for _, g := range groups {
		i := g.layer.Roles[format.RoleA]
		a.blocks = append(a.blocks, block{tensor: i, times: 1, row: g.at, rows: g.keep})
	}
	first := w.shape(a.blocks[0].tensor)
	a.shape = append([]uint64{uint64(n.rank)}, first[1:]...)
	if a.dtype, err = w.commonOf(a); err != nil {
		return err
	}
	n.factors[format.RoleA] = a
	b := &factor{}
	for _, p := range pieces {
		blk := block{tensor: p.layer.Roles[format.RoleB], row: int(p.At), col: p.in.at,
			rows: count(int(p.From), int(p.Rows)), rounds: w.rounds}
		if blk.times, err = w.ratio(p.layer, scale); err != nil {
			return about(err, to.Name)
		}
		if len(p.keep) < p.layer.Rank {
			blk.cols = p.keep
		}
		b.blocks = append(b.blocks, blk)
	}
	b.shape = []uint64{to.Rows, uint64(n.rank)}
	for range first[2:] {
		b.shape = append(b.shape, 1)
	}
	if b.dtype, err = w.commonOf(b); err != nil {
		return err
	}
	n.factors[format.RoleB] = b
	return w.joinVectors(n, to, scale)
}

// joinVectors joins the biases and the magnitudes, which have a value for each row. A row without a
// bias has the bias 0; one without a magnitude has none.
func (w *weaver) joinVectors(n *newLayer, to *naming.Respelled, scale float64) error {
	for _, role := range []format.Role{format.RoleBias, format.RoleMagnitude} {
		f := &factor{shape: []uint64{to.Rows}}
		rows := uint64(0)
		for _, p := range to.Pieces {
			l := w.layers[p.Module]
			if l == nil || !hasRole(l.Roles, role) {
				continue
			}
			i := l.Roles[role]
			b := block{tensor: i, times: 1, row: int(p.At), isVector: true,
				rows: count(int(p.From), int(p.Rows))}
			if t := &w.m.Tensors[i]; t.Elements() != int64(w.shape(l.Roles[format.RoleB])[0]) {
				return fault.New(fault.Unsupported, "%s has shape %d, which cannot be divided by rows",
					t.Name, t.Shape)
			}
			if role == format.RoleBias {
				var err error
				if b.times, err = w.ratio(l, scale); err != nil {
					return err
				}
				b.rounds = w.rounds
			}
			rows += p.Rows
			f.blocks = append(f.blocks, b)
		}
		switch {
		case len(f.blocks) == 0:
			continue
		case role == format.RoleMagnitude && rows < to.Rows:
			return fault.New(fault.Unsupported, "%q joins modules of which only some have magnitudes "+
				"of DoRA", to.Name)
		}
		var err error
		if f.dtype, err = w.commonOf(f); err != nil {
			return err
		}
		n.factors[role] = f
	}
	for _, p := range to.Pieces {
		if w.layers[p.Module] == nil {
			continue
		}
		for role := range w.layers[p.Module].Roles {
			if n.factors[role] == nil && role != format.RoleAlpha {
				return fault.New(fault.Unsupported, "the role %q of layer %q cannot be divided by rows, "+
					"and %q is another part of the model than that layer", role, p.Module, to.Name)
			}
		}
	}
	return nil
}

func (w *weaver) commonOf(f *factor) (dtype.Type, error) {
	var types []dtype.Type
	for _, b := range f.blocks {
		types = append(types, w.m.Tensors[b.tensor].DType)
	}
	t, ok := common(types)
	if !ok {
		return t, fault.New(fault.Unsupported, "tensors of the dtypes %s cannot be joined: %s",
			dtype.Names(types), w.m.Tensors[f.blocks[0].tensor].Name)
	}
	return t, nil
}

// scaleOf returns the scale of a joined layer: the first one that is not 0.
func (w *weaver) scaleOf(to *naming.Respelled) float64 {
	for _, p := range to.Pieces {
		if l := w.layers[p.Module]; l != nil && l.Scale() != 0 {
			return l.Scale()
		}
	}
	return 0
}

// ratio returns what a layer's B is multiplied by in a joined layer of a scale.
func (w *weaver) ratio(l *format.Layer, scale float64) (float64, error) {
	s := l.Scale()
	if s == scale {
		return 1, nil
	}
	x := s / scale
	if !w.rounds && !isProduct(s, x, scale) {
		return 0, fault.New(fault.Unsupported, "the scale %v of %q is not the scale %v of the module "+
			"that holds it with others", s, l.Module, scale).WithHint(hintFold)
	}
	return x, nil
}

// hintFold is the next step for a scale that a dialect cannot say.
const hintFold = "let the factors carry the scale (CreateOptions.FoldScale)"

// count returns n numbers from first on.
func count(first, n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = first + i
	}
	return slices.Clip(all)
}
