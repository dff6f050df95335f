package audit

import (
	"fmt"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// mostWrong is the share of the elements, 1/mostWrong, that can be wrong by themselves. With more
// the whole update is another one.
const mostWrong = 1000

// explain judges a tensor by the way to round that leaves the fewest elements unexplained.
func (x *examination) explain(p *probe) (isExplained bool) {
	t, best := &x.e.found, p.best()
	if best == nil || best.isOut || best.unexplained > t.Elements/mostWrong {
		return false
	}
	if t.Unexplained = best.unexplained; best.unexplained > 0 {
		t.Verdict, t.Finding, t.Rounding = NotAsClaimed, Elements, best.name
		t.Text = fmt.Sprintf("%s of %d differ from every way to round", fault.Count(best.unexplained, "element"), t.Elements)
		if best.far == 0 {
			t.Verdict, t.Finding = Inconclusive, Rounded
			t.Text = fmt.Sprintf("%s of %d differ by one step from the nearest way to round", fault.Count(best.unexplained, "element"), t.Elements)
		}
		return true
	}
	t.Verdict, t.Finding, t.Rounding = AsClaimed, Merged, best.name
	if isReplaced(x.e.change) {
		t.Finding, t.Rounding = Replaced, ""
		return true
	}
	for i := range p.trials {
		if other := &p.trials[i]; other != best && other.unexplained == 0 {
			t.OtherRoundings = append(t.OtherRoundings, other.name)
		}
	}
	t.Margin = merge.Figure(p.margin(best))
	return true
}
