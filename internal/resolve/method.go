package resolve

import (
	"math"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// method is the form of a layer of LyCORIS, or of a difference beside the layers.
type method struct {
	*resolver
	module   string
	layer    *format.Layer  // nil for a difference
	beside   *format.Beside // nil for a layer
	ofBias   bool           // the difference is of the module's bias
	isVector bool           // the target has one dimension
	at       []naming.Slice // where the module lies in a base that names it in another way; nil elsewhere
}

func newMethod(r *resolver, l *format.Layer) form {
	return &method{resolver: r, module: l.Module, layer: l}
}

func newDifference(r *resolver, b *format.Beside) form {
	m := &method{resolver: r, module: naming.Module(b.Target), beside: b}
	m.ofBias = strings.HasSuffix(b.Target, ".bias")
	m.isVector = m.ofBias || len(r.manifest.Tensors[b.Tensor].Shape) == 1
	return m
}

// target returns the name of the tensor that the form changes at a slice.
func (m *method) target(weight string) string {
	if m.ofBias {
		return naming.BiasOf(weight)
	}
	return weight
}

func (m *method) wants() (names []string) {
	for _, at := range m.slices() {
		names = append(names, m.target(at.Weight))
	}
	return names
}

// slices returns where the module lies; without a search the whole weight of its name.
func (m *method) slices() []naming.Slice {
	switch {
	case m.at != nil:
		return m.at
	case m.beside != nil && !m.ofBias:
		return []naming.Slice{{Weight: m.beside.Target}}
	}
	return []naming.Slice{{Weight: m.module + ".weight"}}
}

// update describes the update for naming.
func (m *method) update() naming.Update {
	u := naming.Update{Name: m.module}
	if m.layer != nil {
		u.Rows, u.Columns = delta.Size(m.layer, m.manifest.Tensors)
		if m.layer.Kind == format.InputScaling {
			u.Columns = 0 // a convolution has more columns than inputs
		}
		return u
	}
	t := &m.manifest.Tensors[m.beside.Tensor]
	u.Rows, u.IsVector = uint64(t.Elements()), m.isVector && !m.ofBias
	if !m.isVector && len(t.Shape) > 0 && t.Shape[0] > 0 {
		u.Rows, u.Columns = t.Shape[0], uint64(t.Elements())/t.Shape[0]
	}
	return u
}

func (m *method) add() error {
	scale := m.Weight
	if m.layer != nil {
		scale *= m.layer.Scale()
	}
	if math.IsNaN(scale) || math.IsInf(scale, 0) {
		return fault.New(fault.Corrupt, "%q has the scale %v, with the weight %v", m.module, scale, m.Weight)
	}
	slices := m.slices()
	for _, at := range slices {
		c, err := m.change(m.target(at.Weight), false)
		if err != nil {
			return err
		}
		if c.Stacked {
			return StackedAndNot(c.Name)
		}
		if m.isVector {
			err = m.addVector(c, scale, at)
		} else {
			err = m.addDelta(c, scale, at)
		}
		if err == nil && m.layer != nil {
			err = m.addMagnitude(c, len(slices) == 1 && m.isWhole(c, at))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isWhole reports whether a slice is all rows of a tensor.
func (m *method) isWhole(c *Change, at naming.Slice) bool {
	return m.at == nil || at.At == 0 && len(c.Shape) > 0 && at.Rows == c.Shape[0]
}

// addVector adds a difference of a bias or of the weight of a norm, as a term of rank 1.
func (m *method) addVector(c *Change, scale float64, at naming.Slice) error {
	b := m.blob(m.beside.Tensor)
	have := b.Tensor()
	first, from, n := int64(at.At), int64(at.From), int64(at.Rows)
	if m.at == nil {
		n = c.Elements()
	}
	if !have.DType.IsFloat() || len(c.Shape) != 1 || from+n > have.Elements() || first+n > c.Elements() ||
		m.at == nil && n != have.Elements() {
		return m.misfit(have, c)
	}
	x := Term{Adapter: m.index, Module: m.module, Scale: scale, Rank: 1, Left: one}
	x.Right = WholeA(b, 1).part(int(from), int(n)).to(int(first))
	c.Terms = append(c.Terms, x)
	return nil
}

// addDelta adds an update of a weight.
func (m *method) addDelta(c *Change, scale float64, at naming.Slice) error {
	d := Delta{
		Adapter: m.index, Module: m.module, Scale: scale, Layer: m.layer, Source: m.Source,
		At: int(at.At), From: int(at.From), Count: int(at.Rows), Kernel: 1,
	}
	nRows, nCols := c.Matrix()
	if len(c.Shape) < 2 {
		return m.unlike(c)
	}
	for _, k := range c.Shape[2:] {
		d.Kernel *= int(k)
	}
	rows, cols := nRows, nCols
	if m.layer == nil {
		d.Whole = m.blob(m.beside.Tensor)
		t := d.Whole.Tensor()
		if !t.DType.IsFloat() || len(t.Shape) < 2 || t.Shape[0] == 0 {
			return m.misfit(t, c)
		}
		rows, cols = int64(t.Shape[0]), t.Elements()/int64(t.Shape[0])
	} else {
		r, n := delta.Size(m.layer, m.manifest.Tensors)
		switch m.layer.Kind {
		case format.OutputScaling:
			rows = int64(r)
		case format.InputScaling:
			cols = int64(n) * int64(d.Kernel)
		default:
			rows, cols = int64(r), int64(n)
		}
	}
	if m.at == nil {
		d.Count = int(nRows)
	}
	if m.layer != nil && m.layer.Kind == format.InputScaling {
		d.From = d.At // its row i is a share of row i of the weight
	}
	d.Height = int(rows)
	if cols != nCols || int64(d.At+d.Count) > nRows || int64(d.From+d.Count) > rows || m.at == nil && rows != nRows {
		return m.unlike(c)
	}
	c.Deltas = append(c.Deltas, d)
	return nil
}

// misfit is the error for a difference with another shape than its target.
func (m *method) misfit(have *format.Tensor, c *Change) error {
	e := fault.New(fault.Mismatch, "the difference %q has shape %d as %v, but the base's %q has shape %d",
		have.Name, have.Shape, have.DType, c.Name, c.Shape)
	e.Rule = "R139"
	return e.WithHint("%s", m.wrongBase())
}

// unlike is the error for a ΔW of another size than its target.
func (m *method) unlike(c *Change) error {
	if m.layer == nil {
		return m.misfit(m.blob(m.beside.Tensor).Tensor(), c)
	}
	u := m.update()
	e := fault.New(fault.Mismatch, "%q: ΔW is %d×%d, but the base's weight has shape %d (0: any number)",
		m.module, u.Rows, u.Columns, c.Shape)
	e.Rule = "R137"
	return e.WithHint("%s", m.wrongBase())
}

// addMagnitude adds the magnitudes of the layer, of outputs or of inputs.
func (m *method) addMagnitude(c *Change, isWhole bool) error {
	p := &plain{resolver: m.resolver, layer: m.layer}
	if _, ok := p.magnitude(); !ok {
		return nil
	}
	if !isWhole {
		return p.dividedMagnitude(c.Name)
	}
	return p.addMagnitude(c, false)
}

// checkDeltas refuses updates that cannot be combined with the others of a tensor.
func (c *Change) checkDeltas() error {
	if c.Rows != nil || c.HasResidual() {
		return fault.New(fault.Unsupported, "%q gets an update by a method of LyCORIS and trained rows, or the residual of an initialisation, and their order is not defined", c.Name)
	}
	return nil
}
