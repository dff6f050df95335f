package audit_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/audit"
	"github.com/loratool/loratool/merge"
)

// audited audits a claim.
func audited(t *testing.T, c claim) *audit.Report {
	t.Helper()
	var adapters []merge.Adapter
	for i, path := range c.Adapters {
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		adapters = append(adapters, merge.Adapter{Source: src, Name: path, Weight: c.Weights[i]})
	}
	r, err := audit.Run(t.Context(), modelAt(t, c.Base), modelAt(t, c.Merged), adapters, audit.Options{Reading: c.Reading})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestMergesOfOtherToolsAreRecognised audits merges that PEFT, mlx-lm and kohya's formulas made.
// None is a false alarm, and the way to round is the one that made it, or one that explains it as
// well.
func TestMergesOfOtherToolsAreRecognised(t *testing.T) {
	for _, c := range mergeCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			r := audited(t, c.write(t))
			if string(r.Verdict) != c.Verdict {
				t.Errorf("verdict %s, want %s", r.Verdict, c.Verdict)
			}
			whole := append([]audit.Rounding{r.Rounding}, r.OtherRoundings...)
			if c.Verdict == "as_claimed" && len(c.Tensors) > 0 && c.Rounding[0] != "mixed" &&
				!slices.ContainsFunc(c.Rounding, func(r string) bool { return slices.Contains(whole, audit.Rounding(r)) }) {
				t.Errorf("rounding of the whole %v, want %v", whole, c.Rounding)
			}
			for i := range r.Tensors {
				x := &r.Tensors[i]
				if c.Verdict == "as_claimed" && x.Verdict != audit.AsClaimed {
					t.Errorf("%s: %s: %s", x.Tensor, x.Verdict, x.Explain())
				}
				want, isChanged := c.Tensors[x.Tensor]
				if n, ok := want.Differ["exact"]; ok && c.Cast == "" && x.Finding == audit.Merged && int(x.Different) != n {
					t.Errorf("%s: %d elements differ from the exact merge, want %d", x.Tensor, x.Different, n)
				}
				if !isChanged || len(want.Rounding) == 0 || x.Finding != audit.Merged {
					continue
				}
				got := append([]audit.Rounding{x.Rounding}, x.OtherRoundings...)
				if !slices.ContainsFunc(want.Rounding, func(r string) bool { return slices.Contains(got, audit.Rounding(r)) }) {
					t.Errorf("%s: rounding %v, want %v", x.Tensor, got, want.Rounding)
				}
			}
		})
	}
}

// TestExactMergesAreExact audits merges of package merge, of every method that PEFT has.
func TestExactMergesAreExact(t *testing.T) {
	for _, g := range peftCases(t) {
		t.Run(g.Name, func(t *testing.T) {
			r := audited(t, g.claim(g.exact(t, nil).write(t)))
			if r.Verdict != audit.AsClaimed {
				t.Errorf("verdict %s", r.Verdict)
			}
			for i := range r.Tensors {
				if x := &r.Tensors[i]; x.Verdict != audit.AsClaimed || x.Finding == audit.Merged && x.Different != 0 {
					t.Errorf("%s: %s: %s, %d elements differ", x.Tensor, x.Verdict, x.Explain(), x.Different)
				}
			}
		})
	}
}

// TestDefectsAreNamed audits wrong merges: each is found, the right tensors are flagged, and by
// their names.
func TestDefectsAreNamed(t *testing.T) {
	for _, d := range defects(t) {
		t.Run(d.Name, func(t *testing.T) {
			r := audited(t, d.write(t))
			if !slices.Contains(d.Verdicts, string(r.Verdict)) {
				t.Errorf("verdict %s, want %v", r.Verdict, d.Verdicts)
			}
			for i := range r.Tensors {
				x := &r.Tensors[i]
				switch allowed := d.allowed(x.Tensor); {
				case allowed == nil && x.Verdict != audit.AsClaimed:
					t.Errorf("%s is flagged: %s", x.Tensor, x.Explain())
				case allowed != nil && !slices.Contains(allowed, string(x.Finding)):
					t.Errorf("%s: %s (%s), want %s", x.Tensor, x.Finding, x.Explain(), strings.Join(allowed, " or "))
				case allowed != nil && d.Factor != 0:
					if w := x.Weights[0]; math.Abs(float64(w.Value)-d.Factor) > 6*float64(w.Error)+1e-6 {
						t.Errorf("%s: weight %g ± %g, want %g", x.Tensor, w.Value, w.Error, d.Factor)
					}
				}
			}
		})
	}
}

func modelAt(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
