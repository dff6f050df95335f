package convert

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

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
	scaling   format.Scaling // not Fixed
	alphaAt   int            // the source's tensor with alpha, -1 if it has none
	factors   map[format.Role]*factor
}

// weaver makes the layers of a new file.
type weaver struct {
	ctx    context.Context
	src    format.Source
	m      *format.Manifest
	layers map[string]*format.Layer
	keeps  map[string]map[string][]int // columns of B that a new module keeps: by layer, by module
	rounds bool                        // scales may be joined by rounding
}

func newWeaver(ctx context.Context, src format.Source) *weaver {
	w := &weaver{ctx: ctx, src: src, m: src.Manifest(), layers: make(map[string]*format.Layer),
		keeps: make(map[string]map[string][]int)}
	a := &w.m.Adapters[0]
	for i := range a.Layers {
		w.layers[a.Layers[i].Module] = &a.Layers[i]
	}
	return w
}

// updates returns the modules of the adapter and the sizes of their updates.
func (w *weaver) updates() ([]naming.Update, error) {
	var all []naming.Update
	a := &w.m.Adapters[0]
	for i := range a.Layers {
		l := &a.Layers[i]
		if l.Kind != format.Linear && l.Kind != format.Conv {
			return nil, fault.New(fault.Unsupported, "layer %q has kind %s", l.Module, l.Kind)
		}
		rows, columns := w.shape(l.Roles[format.RoleB])[0], uint64(1)
		for _, n := range w.shape(l.Roles[format.RoleA])[1:] {
			columns *= n
		}
		all = append(all, naming.Update{Name: l.Module, Rows: rows, Columns: columns})
	}
	return all, nil
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
		_, hasBias := l.Roles[format.RoleBias]
		_, hasMagnitude := l.Roles[format.RoleMagnitude]
		if len(targets) < 2 || hasBias || hasMagnitude {
			continue
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
	first := w.layers[to.Pieces[0].Module]
	n := &newLayer{name: to.Name, component: to.Component, kind: first.Kind, rank: first.Rank,
		alpha: first.Alpha, scaling: first.Scaling, alphaAt: -1,
		factors: make(map[format.Role]*factor)}
	if i, ok := first.Roles[format.RoleAlpha]; ok {
		n.alphaAt = i
	}
	if w.isWhole(to) {
		for role, i := range first.Roles {
			if role != format.RoleAlpha {
				n.factors[role] = wholeOf(w.m, i)
			}
		}
		if first.Scaling == format.Fixed {
			return n, n.setScale(first.Fixed, first.Rank)
		}
		return n, nil
	}
	return w.join(n, to)
}

// isWhole reports whether a new module is a module of the adapter, row for row.
func (w *weaver) isWhole(to *naming.Respelled) bool {
	p := to.Pieces[0]
	return len(to.Pieces) == 1 && p.At == 0 && p.From == 0 && p.Rows == to.Rows &&
		w.rows(p.Module) == to.Rows
}

func (w *weaver) rows(module string) uint64 {
	return w.shape(w.layers[module].Roles[format.RoleB])[0]
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
	scale, err := w.scaleOf(to)
	if err != nil {
		return nil, err
	}
	var groups []*group
	var pieces []joint
	rank := 0
	for _, p := range to.Pieces {
		l := w.layers[p.Module]
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
		return nil, nil
	}
	n.rank = rank
	if err := n.setScale(scale, rank); err != nil {
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
			i, ok := l.Roles[role]
			if !ok {
				continue
			}
			b := block{tensor: i, times: 1, row: int(p.At), rows: count(int(p.From), int(p.Rows))}
			if t := &w.m.Tensors[i]; t.Shape[0] != uint64(w.rows(p.Module)) {
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
func (w *weaver) scaleOf(to *naming.Respelled) (float64, error) {
	for _, p := range to.Pieces {
		if s := w.layers[p.Module].Scale(); s != 0 {
			return s, nil
		}
	}
	return 0, nil
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
