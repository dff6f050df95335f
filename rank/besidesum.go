package rank

import (
	"context"
	"fmt"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// besideSums are the tensors beside the layers of the result.
type besideSums []besideSum

// besideSum is a tensor beside the layers: one that stays, or a sum of differences.
type besideSum struct {
	members []besideMember
	spooled int // of a sum
}

type besideMember struct {
	source int
	beside *format.Beside
	weight float64
}

// isKept reports whether the only tensor stays as it is.
func (b *besideSum) isKept() bool { return len(b.members) == 1 && b.members[0].weight == 1 }

// plan groups the tensors by their targets. Differences can be added; nothing else can.
func (s *besideSums) plan(c *combining, all []*format.Adapter) error {
	at := make(map[string]int)
	for i, a := range all {
		for j := range a.Beside {
			b := &a.Beside[j]
			m := besideMember{i, b, c.weights[i]}
			n, isKnown := at[b.Target]
			if !isKnown {
				n = len(*s)
				at[b.Target], *s = n, append(*s, besideSum{})
			}
			sum := &(*s)[n]
			sum.members = append(sum.members, m)
			if err := sum.check(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *besideSum) check(c *combining) error {
	first, last := &b.members[0], &b.members[len(b.members)-1]
	t, u := first.tensor(c), last.tensor(c)
	if !b.isKept() && (first.beside.Action != format.Difference || last.beside.Action != format.Difference) {
		return fault.New(fault.Unsupported, "%q is a whole tensor that adapter %d stores beside its layers, and it has no sum: only one adapter may have it, with the weight 1", last.beside.Target, last.source+1).
			WithHint("leave the adapter out, or merge the adapters one after the other")
	}
	if fmt.Sprint(t.Shape) != fmt.Sprint(u.Shape) {
		return fault.New(fault.Mismatch, "the difference of %q has shape %d in adapter %d and %d in adapter %d", last.beside.Target, t.Shape, first.source+1, u.Shape, last.source+1).
			WithHint("the adapters are for different models")
	}
	if !b.isKept() && !u.DType.IsFloat() {
		return fault.New(fault.Unsupported, "%q is stored as %v, want F64, F32, F16 or BF16", u.Name, u.DType)
	}
	return nil
}

func (m *besideMember) tensor(c *combining) *format.Tensor {
	return &c.sources[m.source].Manifest().Tensors[m.beside.Tensor]
}

// addBeside computes the sums of differences.
func (c *combining) addBeside(ctx context.Context) error {
	for i := range c.sums {
		b := &c.sums[i]
		if b.isKept() {
			continue
		}
		t := b.members[0].tensor(c)
		total := make([]float64, t.Elements())
		for _, m := range b.members {
			x, err := format.ReadFloats(ctx, c.sources[m.source], m.beside.Tensor)
			if err != nil {
				return err
			}
			for j, v := range x {
				total[j] += m.weight * v
			}
		}
		var err error
		if b.spooled, err = c.addValues(t.Name, t.Shape, total); err != nil {
			return err
		}
	}
	return nil
}

// addBias computes the bias of B of a layer whose bias is not that of its only member: Σ w·s·bias,
// divided by the scale of the result.
func (c *combining) addBias(ctx context.Context, g *group) error {
	if g.isKept || g.isDropped {
		return nil
	}
	var total []float64
	var shape []uint64
	scale := g.layer.Scale()
	for _, m := range g.members {
		i, ok := m.layer.Roles[format.RoleBias]
		if !ok {
			continue
		}
		x, err := format.ReadFloats(ctx, c.sources[m.source], i)
		if err != nil {
			return err
		}
		if total == nil {
			total, shape = make([]float64, len(x)), c.sources[m.source].Manifest().Tensors[i].Shape
		}
		for j := range min(len(x), len(total)) {
			total[j] += m.weight / scale * x[j]
		}
	}
	if total == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	g.bias, err = c.addValues(g.module+".lora_B.bias", shape, total)
	return err
}

// addValues stores values as F32.
func (c *combining) addValues(name string, shape []uint64, values []float64) (spooled int, err error) {
	raw := make([]byte, 4*len(values))
	for i, v := range values {
		dtype.Store(dtype.F32, raw, i, v)
	}
	return c.spool.add(name, dtype.F32, shape, raw)
}

// enter lists the tensors.
func (s besideSums) enter(c *combining, a *format.Adapter) {
	for _, b := range s {
		record := *b.members[0].beside
		if b.isKept() {
			record.Tensor = c.keep(b.members[0].source, record.Tensor)
		} else {
			record.Tensor = c.take(b.spooled)
		}
		a.Beside = append(a.Beside, record)
	}
}
