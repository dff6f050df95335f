package audit

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/format/dtype"
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
	s, err := x.compareValues()
	if err != nil {
		return err
	}
	t.Different = s.different
	t.setChange(s)
	switch {
	case x.e.merged.DType != x.e.DType && s.different == 0:
		t.Verdict, t.Finding = AsClaimed, Cast
		t.Text = fmt.Sprintf("it is stored as %v, and the base has %v", x.e.merged.DType, x.e.DType)
	case s.differentF16 == 0:
		t.Verdict, t.Finding = AsClaimed, Cast
		t.Text = "its values have gone through float16"
	case x.e.merged.DType != x.e.DType:
		t.Text = fmt.Sprintf("it is stored as %v with other values than those of the base, which has %v", x.e.merged.DType, x.e.DType)
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
	if r := round(out, round(dtype.F16, w)); r != m && (r == r || m == m) {
		s.differentF16++
	}
	if r := round(out, w); r != m && (r == r || m == m) {
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
	x := ulp(out, m)
	s.noise += x * x / 12
}

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

// compareValues compares all elements.
func (x *examination) compareValues() (*values, error) {
	s := new(values)
	const most = 1 << 16
	buf := newElements(most)
	total := elements(x.e.Shape)
	for first := int64(0); first < total; first += most {
		n := int(min(most, total-first))
		if err := wide(x.ctx, x.e.base, buf.w[:n], buf.raw, first); err != nil {
			return nil, err
		}
		if err := wide(x.ctx, x.e.merged, buf.m[:n], buf.raw, first); err != nil {
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
	t := &x.e.found
	s, err := x.compareValues()
	if err != nil {
		return err
	}
	t.setChange(s)
	switch {
	case s.different == 0:
		t.Verdict, t.Finding = NotAsClaimed, notApplied(x.e.change)
		return nil
	case s.nonFinite > 0:
		t.Verdict, t.Finding = NotAsClaimed, NonFinite
		t.Text = fmt.Sprintf("%d of its elements are NaN or infinite", s.nonFinite)
		return nil
	}
	if why := isSpecial(x.e.change); why != "" {
		return x.examineSpecial(s)
	}
	updates, err := readUpdates(x.ctx, x.e.change, len(x.adapters), x.e.merged.DType)
	if err != nil {
		return err
	}
	isExplained, err := x.tryRoundings(updates)
	if err != nil || isExplained {
		return err
	}
	if x.e.change.DoRA != nil {
		return x.tryPlain()
	}
	if s.narrow() != dtype.Invalid && x.e.DType == x.e.merged.DType {
		t.Verdict, t.Finding, t.Text = NotAsClaimed, Cast, narrowText(s)
		return nil
	}
	return x.fit(s, updates)
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
func (x *examination) examineSpecial(s *values) error {
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
