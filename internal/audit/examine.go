package audit

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/merge"
)

// examineUntouched judges a tensor that no adapter changes, or that the base lacks, and that is not
// what the merge makes, byte for byte.
func (x *examination) examineUntouched() error {
	t := &x.e.found
	t.Verdict, t.Finding = NotAsClaimed, Foreign
	if x.e.base == nil {
		t.Text = "the base has no tensor of this name and shape, and its values are not the adapter's"
		return nil
	}
	s, err := x.compareValues(0)
	if err != nil {
		return err
	}
	t.Different = s.different
	t.setChange(s)
	isCast := t.MergedDType != t.DType
	switch {
	case !isCast && x.e.isCoded() && s.different == 0:
		t.Verdict, t.Finding = AsClaimed, Untouched
	case isCast && s.different == 0:
		t.Verdict, t.Finding = AsClaimed, Cast
		t.Text = fmt.Sprintf("it is stored as %s, and the base has %s", t.MergedDType, t.DType)
	case s.differentF16 == 0 && !x.e.isCoded():
		t.Verdict, t.Finding = AsClaimed, Cast
		t.Text = "its values have gone through float16"
	case isCast:
		t.Text = fmt.Sprintf("it is stored as %s with other values than those of the base, which has %s", t.MergedDType, t.DType)
	case s.narrow() != dtype.Invalid:
		t.Finding, t.Text = Cast, narrowText(s)
	case s.nonFinite > 0:
		t.Finding = NonFinite
	}
	return nil
}

// narrowText says that values have lost digits.
func narrowText(s *values) string {
	return fmt.Sprintf("all of its values fit %v: they have gone through that dtype, and those of the base do not fit it", s.narrow())
}

func (s *values) add(out dtype.Type, w, m float64) {
	s.n++
	if differ(round(out, round(dtype.F16, w)), m) {
		s.differentF16++
	}
	if differ(round(out, w), m) {
		s.different++
		if m-m != 0 && w-w == 0 {
			s.nonFinite++
			return
		}
	}
	if m-m != 0 || w-w != 0 {
		return
	}
	for i, d := range narrower {
		if round(d, w) != w {
			s.wideW[i]++
		}
		if round(d, m) != m {
			s.wideM[i]++
		}
	}
	s.base, s.change = s.base+w*w, s.change+(m-w)*(m-w)
}

// differ reports whether two values differ. All NaN are equal.
func differ(a, b float64) bool { return a != b && (a == a || b == b) }

// narrower are the dtypes that a tensor may have gone through.
var narrower = [2]dtype.Type{dtype.F16, dtype.BF16}

// narrow returns the dtype that all values of the merged tensor fit, while more than a few of the
// base's do not; Invalid if there is none.
func (s *values) narrow() dtype.Type {
	for i, d := range narrower {
		if s.wideM[i] == 0 && s.wideW[i]*10 > s.n {
			return d
		}
	}
	return dtype.Invalid
}

// manyValues is the number of elements whose values tell enough of a tensor that is wrong as a
// whole.
const manyValues = 1 << 20

// compareValues compares all elements, or if most is not 0 about that many from all over the
// tensor.
func (x *examination) compareValues(most int64) (*values, error) {
	s := new(values)
	const piece = 1 << 12
	buf := newElements(x.e.ofBase(), piece)
	total, step := elements(x.e.Shape), int64(piece)
	if most > 0 {
		step = max(piece, total/most*piece)
	}
	for first := int64(0); first < total; first += step {
		n := int(min(piece, total-first))
		if err := buf.read(x.ctx, first, n); err != nil {
			return nil, err
		}
		for i, w := range buf.w[:n] {
			s.add(x.e.merged.DType, w, buf.m[i])
		}
	}
	return s, nil
}

func (t *Tensor) setChange(s *values) {
	t.Change = 0
	if s.base > 0 {
		t.Change = merge.Figure(math.Sqrt(s.change / s.base))
	} else if s.change > 0 {
		t.Change = merge.Figure(math.Inf(1))
	}
}

// examine judges a tensor that adapters change, and that differs from the correctly rounded merge.
func (x *examination) examine() error {
	t, p := &x.e.found, x.e.probe
	if p == nil {
		var err error
		if p, err = x.newProbe(); err != nil {
			return err
		}
		if p != nil {
			if err := p.all(x.ctx, 1); err != nil {
				return err
			}
		}
	}
	if p != nil && p.explainsAll() && x.explain(p) {
		return nil
	}
	equalsBase, nonFinite, err := x.scan()
	if err != nil {
		return err
	}
	switch {
	case equalsBase:
		t.Verdict, t.Finding = NotAsClaimed, notApplied(x.e.change)
		return nil
	case nonFinite > 0:
		t.Verdict, t.Finding = NotAsClaimed, NonFinite
		t.Text = fmt.Sprintf("%d of its elements are NaN or infinite", nonFinite)
		return nil
	case p == nil:
		return x.examineSpecial()
	case x.explain(p):
		return nil
	}
	s, err := x.compareValues(manyValues)
	if err != nil {
		return err
	}
	t.setChange(s)
	if x.e.change.DoRA != nil {
		return x.tryPlain(p.updates)
	}
	if s.narrow() != dtype.Invalid && x.e.DType == x.e.merged.DType {
		t.Verdict, t.Finding, t.Text = NotAsClaimed, Cast, narrowText(s)
		return nil
	}
	return x.fit(p.updates)
}

// scan reads both tensors, and reports whether the merged one equals the base's, cast to its dtype.
// nonFinite counts the elements that are NaN or infinite in the merged one only.
func (x *examination) scan() (equalsBase bool, nonFinite int64, err error) {
	const piece = 1 << 16
	buf := newElements(x.e.ofBase(), piece)
	total := elements(x.e.Shape)
	equalsBase = true
	for first := int64(0); first < total; first += piece {
		n := int(min(piece, total-first))
		if err := buf.read(x.ctx, first, n); err != nil {
			return false, 0, err
		}
		isFinite := dense.Dot(buf.m[:n], buf.m[:n]) < math.Inf(1)
		if !equalsBase && isFinite {
			continue
		}
		for i, w := range buf.w[:n] {
			m := buf.m[i]
			if differ(round(x.e.merged.DType, w), m) {
				if equalsBase = false; isFinite {
					break
				}
				if m-m != 0 && w-w == 0 {
					nonFinite++
				}
			}
		}
	}
	return equalsBase, nonFinite, nil
}

// notApplied names the fault of a tensor that equals the base's, although adapters change it.
func notApplied(c *resolve.Change) Finding {
	switch {
	case !isReplaced(c):
		return NotApplied
	case c.Replace != nil && len(c.Shape) == 1:
		return BiasDropped
	}
	return NotReplaced
}

// examineSpecial judges a tensor whose update is no sum of thin products, by its distance from the
// correctly rounded merge.
func (x *examination) examineSpecial() error {
	t := &x.e.found
	if x.e.isCompared() && x.e.far == 0 && x.e.different*100 <= t.Elements {
		t.Finding, t.Rounding = Merged, Float32
		t.Text = "every element is the correctly rounded one or its neighbour"
		return nil
	}
	t.Verdict, t.Finding = NotAsClaimed, Foreign
	t.Text = "it is not the adapter's"
	return nil
}
