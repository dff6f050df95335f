package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/thin"
)

// other is an update that a faulty merge may have made in place of the right one.
type other struct {
	finding Finding
	text    string
	updates []update
}

// tryOthers looks for another update that explains the change of a tensor: all of them in a few
// rows, then the best in about manyValues elements.
func (x *examination) tryOthers(f *fitting, updates []update) error {
	t := &x.e.found
	t.Verdict = NotAsClaimed
	var best *other
	cosine := 0.5
	if err := x.eachOther(updates, func(o other) error {
		c, err := x.cosine(o.updates)
		if c > cosine {
			best, cosine = &o, c
		}
		return err
	}); err != nil {
		return err
	}
	if best != nil {
		g, err := x.leastSquares(best.updates, nil)
		if err != nil {
			return err
		}
		if g.isNoise() {
			t.Finding, t.Text = best.finding, best.text
			if w := g.weights[0]; len(g.weights) == 1 && !isNear(w, g.errors[0], 1) {
				t.Text += fmt.Sprintf(", at %.4g of its scale", w)
			}
			t.setFit(g)
			return nil
		}
	}
	return x.nameForeign(f)
}

// eachOther calls f for each update that may be there in place of the right one.
func (x *examination) eachOther(updates []update, f func(o other) error) error {
	list := swaps(updates)
	if square := transposed(updates); square != nil {
		list = append(list, other{Transposed, "the update is there, transposed", square})
	}
	nRows, _ := x.e.change.Matrix()
	for shift := 1; shift < min(x.e.change.NBands, 4); shift++ {
		for _, by := range []int{shift, -shift} {
			text := fmt.Sprintf("experts have the updates of others, %d further on", by)
			list = append(list, other{Exchanged, text, shifted(updates, by*int(nRows)/x.e.change.NBands, int(nRows))})
		}
	}
	for _, o := range list {
		if err := f(o); err != nil {
			return err
		}
	}
	read := func(c *resolve.Change, finding Finding, text string) error {
		if c == nil || isSpecial(c) != "" {
			return nil
		}
		u, err := readUpdates(x.ctx, c, len(x.adapters), x.e.merged.DType)
		if err != nil {
			return err
		}
		if err := f(other{finding, text, u}); err != nil {
			return err
		}
		if square := transposed(u); square != nil {
			return f(other{finding, text + ", transposed", square})
		}
		return nil
	}
	for _, r := range x.readings() {
		if err := read(r.changes[x.e.Name], OtherReading, "the adapter was read in another way: "+r.text); err != nil {
			return err
		}
	}
	for _, sibling := range x.expected {
		c := sibling.change
		if c == nil || c == x.e.change || !slices.Equal(c.Shape, x.e.change.Shape) || c.Stacked != x.e.change.Stacked {
			continue
		}
		if err := read(c, Exchanged, hasUpdateOf+c.Module); err != nil {
			return err
		}
	}
	return nil
}

// transposed returns the transposed updates of square layers, nil if a layer is not square.
func transposed(updates []update) (all []update) {
	for _, u := range updates {
		var v update
		for _, p := range u.parts {
			if len(p.rows) != len(p.cols) {
				return nil
			}
			p.normA, p.normB = p.normB, p.normA
			for i, f := range p.factors {
				p.factors[i] = &thin.Matrix{M: f.N, N: f.M, R: f.R, B: f.A, A: f.B}
			}
			v.parts = append(v.parts, p)
		}
		all = append(all, v)
	}
	return all
}

// shifted moves updates by a number of rows, round the end of the tensor.
func shifted(updates []update, by, nRows int) (all []update) {
	for _, u := range updates {
		var v update
		for _, p := range u.parts {
			rows := slices.Clone(p.rows)
			for i := range rows {
				rows[i] = ((rows[i]+by)%nRows + nRows) % nRows
			}
			if slices.IsSorted(rows) {
				p.rows = rows
				v.parts = append(v.parts, p)
			}
		}
		all = append(all, v)
	}
	return all
}

// swaps exchanges pairs of the parts of a fused projection that have equal sizes.
func swaps(updates []update) (all []other) {
	for k := range updates {
		parts := updates[k].parts
		if len(parts) > 8 {
			continue
		}
		for i := range parts {
			for j := range i {
				if len(parts[i].rows) != len(parts[j].rows) || len(parts[i].cols) != len(parts[j].cols) {
					continue
				}
				changed := slices.Clone(updates)
				changed[k].parts = slices.Clone(parts)
				x, y := &changed[k].parts[i], &changed[k].parts[j]
				x.rows, y.rows, x.cols, y.cols = y.rows, x.rows, y.cols, x.cols
				all = append(all, other{Exchanged, "two projections in it have each other's updates", changed})
			}
		}
	}
	return all
}

// readings resolves the adapters in the other ways that flags of merge name. Those that do not fit
// are left out.
func (a *auditor) readings() []reading {
	a.once.Do(func() {
		for _, x := range []struct {
			text string
			set  func(r *resolve.Reading)
		}{
			{"lora_B of the experts was read in the other order", func(r *resolve.Reading) { r.ExpertsSlowest = !r.ExpertsSlowest }},
			{"square experts were read with the other dimension as input", func(r *resolve.Reading) { r.ExpertInput = 1 }},
			{"square experts were read with the other dimension as input", func(r *resolve.Reading) { r.ExpertInput = 2 }},
			{"gate and up lie in turns, or one after the other", func(r *resolve.Reading) { r.ExpertTurns = !r.ExpertTurns }},
			{"Conv1D weights were read with the other dimension as input", func(r *resolve.Reading) { r.LinearInput = 1 }},
			{"Conv1D weights were read with the other dimension as input", func(r *resolve.Reading) { r.LinearInput = 2 }},
			{"out_proj was updated once, or twice", func(r *resolve.Reading) { r.OutProjTwice = !r.OutProjTwice }},
		} {
			r := resolve.Reading(a.o.Reading)
			x.set(&r)
			checked, err := resolve.Check(a.asResolved(), r)
			if err != nil {
				continue
			}
			changes, _, err := a.changesOf(checked)
			if err != nil {
				continue
			}
			a.otherReadings = append(a.otherReadings, reading{x.text, byName(changes)})
		}
	})
	return a.otherReadings
}

// sampleRows is the number of rows on which other updates are compared with a change.
const sampleRows = 24

// cosine compares the sum of updates with the change of a tensor, in some of the rows that the
// updates have.
func (x *examination) cosine(updates []update) (float64, error) {
	_, nCols := x.e.change.Matrix()
	buf := newElements(x.e, int(nCols))
	u := make([]float64, nCols)
	var rows []int
	for _, u := range updates {
		for _, p := range u.parts {
			rows = append(rows, p.rows...)
		}
	}
	slices.Sort(rows)
	rows = slices.Compact(rows)
	var dd, uu, du float64
	for i := 0; i < len(rows); i += max(1, len(rows)/sampleRows) {
		if err := buf.read(x.ctx, int64(rows[i])*nCols, int(nCols)); err != nil {
			return 0, err
		}
		clear(u)
		for k := range updates {
			updates[k].add(u, nil, asStored, rows[i], 1, int(nCols))
		}
		for j, w := range buf.w {
			buf.m[j] -= w
		}
		dd, uu, du = dd+dense.Dot(buf.m, buf.m), uu+dense.Dot(u, u), du+dense.Dot(buf.m, u)
	}
	if dd == 0 || uu == 0 {
		return 0, nil
	}
	return math.Abs(du) / math.Sqrt(dd*uu), nil
}

// nameForeign names a change that no update explains.
func (x *examination) nameForeign(f *fitting) error {
	t := &x.e.found
	t.Finding = Foreign
	if c := math.Sqrt(max(0, 1-f.residual/f.change)); c > 0.5 && isThere(f) {
		t.Finding = Besides
		t.Text = fmt.Sprintf("the update is there, and %.2g of the change is something else", math.Sqrt(f.residual/f.change))
		return nil
	}
	t.Text = "it is not the adapter's"
	return nil
}

// isThere reports whether the adapters have their claimed weights, as well as can be told beside a
// foreign change.
func isThere(f *fitting) bool {
	for k, w := range f.weights {
		if !math.IsNaN(w) && math.Abs(w-1) > max(5*f.errors[k], 0.05) {
			return false
		}
	}
	return true
}

// tryPlain compares the change of a tensor with W + ΔW without DoRA's magnitudes.
func (x *examination) tryPlain(updates []update) error {
	t := &x.e.found
	t.Verdict, t.Finding, t.Text = NotAsClaimed, Foreign, "it is not the adapter's"
	f, err := x.leastSquares(updates, nil)
	if err != nil {
		return err
	}
	if f.isNoise() {
		t.Finding, t.Text = DoRAAsPlain, "ΔW was added without DoRA's magnitudes"
		t.setFit(f)
	}
	return nil
}

// twin finds a tensor of the merged checkpoint with the same bytes as an extra one, if the two can
// be ends of a tie.
func (a *auditor) twin(name string, t *checkpoint.Tensor) (string, error) {
	for _, other := range a.merged.Names() {
		ref, _ := a.merged.Lookup(other)
		if other == name || !isEnd(name) || !isEnd(other) || ref.Tensor.DType != t.DType || !slices.Equal(ref.Tensor.Shape, t.Shape) {
			continue
		}
		if same, err := equal(a.ctx, t, ref.Tensor); same || err != nil {
			return other, err
		}
	}
	return "", nil
}

// equal compares the bytes of two tensors of one size.
func equal(ctx context.Context, s, t *checkpoint.Tensor) (bool, error) {
	p, q := make([]byte, min(s.NBytes, pieceBytes)), make([]byte, min(s.NBytes, pieceBytes))
	for off := int64(0); off < s.NBytes; off += pieceBytes {
		n := min(pieceBytes, s.NBytes-off)
		if err := errors.Join(s.ReadAt(ctx, p[:n], off), t.ReadAt(ctx, q[:n], off)); err != nil || !bytes.Equal(p[:n], q[:n]) {
			return false, err
		}
	}
	return true, nil
}
