package audit_test

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
)

// TestMergesOfOtherToolsDifferFromTheExactOneWhereTheyRound counts the elements in which the merges
// of other tools differ from the one of package merge. Python counted them from PEFT's float64
// result, or from its own product in float64, rounded once.
func TestMergesOfOtherToolsDifferFromTheExactOneWhereTheyRound(t *testing.T) {
	compared := 0
	for _, c := range mergeCases(t) {
		if c.Cast != "" || c.Verdict != "as_claimed" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			merged, exact := c.build(t), c.exact(t, nil)
			for name, x := range merged.tensors {
				want, counted := 0, true
				if told, ok := c.Tensors[name]; ok && told.Differ != nil {
					want, counted = told.Differ["exact"], hasExact(told.Differ)
				}
				if !counted {
					continue
				}
				got := 0
				ours := values(exact.tensors[name])
				for i, v := range values(x) {
					if v != ours[i] {
						got++
					}
				}
				if got != want {
					t.Errorf("%s differs in %d elements, want %d", name, got, want)
				}
				compared++
			}
		})
	}
	t.Logf("%d tensors compared", compared)
}

func hasExact(differ map[string]int) bool {
	_, ok := differ["exact"]
	return ok
}

// TestDefectsChangeTheTensorsThatTheyName compares each wrong merge with the right one: an audit
// has to flag the tensors that differ, and only these.
func TestDefectsChangeTheTensorsThatTheyName(t *testing.T) {
	all := defects(t)
	if len(all) < 24 {
		t.Errorf("%d defects, want 24 at least", len(all))
	}
	for _, d := range all {
		t.Run(d.Name, func(t *testing.T) {
			right, wrong := d.right(t), readModel(t, d.write(t).Merged)
			names := maps.Clone(right.tensors)
			maps.Copy(names, wrong.tensors)
			flagged := 0
			for _, name := range slices.Sorted(maps.Keys(names)) {
				same := equal(right.tensors[name], wrong.tensors[name])
				if allowed := d.allowed(name) != nil; same == allowed {
					t.Errorf("%s: equal to the right merge: %v; named by the defect: %v", name, same, allowed)
				}
				if !same {
					flagged++
				}
			}
			if flagged == 0 {
				t.Error("the wrong merge equals the right one")
			}
		})
	}
}

func equal(a, b testkit.Tensor) bool {
	return a.DType == b.DType && slices.Equal(a.Shape, b.Shape) && bytes.Equal(a.Data, b.Data)
}
