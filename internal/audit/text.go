package audit

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// Text explains the verdict on a checkpoint.
func (r *Report) Text(base, merged string) string {
	n := r.Counts()
	switch r.Verdict {
	case AsClaimed:
		return fmt.Sprintf("as claimed: %s is %s with the adapters", merged, base)
	case NotAsClaimed:
		return fmt.Sprintf("not as claimed: %d of %s", n[NotAsClaimed], fault.Count(len(r.Tensors), "tensor"))
	}
	return fmt.Sprintf("inconclusive: nothing is wrong for certain, but the data do not tell for %d of %s", n[Inconclusive], fault.Count(len(r.Tensors), "tensor"))
}

// findingTexts explain findings of a tensor.
var findingTexts = map[Finding]string{
	Untouched:    "untouched",
	Merged:       "merged",
	Replaced:     "replaced by the adapter's",
	NotApplied:   "the update was not applied: it equals the base's",
	NotReplaced:  "it was not replaced by the adapter's: it equals the base's",
	BiasDropped:  "the adapter's bias was dropped: it equals the base's",
	Scale:        "wrong scale",
	Twice:        "applied twice",
	Sign:         "subtracted",
	Weights:      "other weights",
	AdapterLost:  "an adapter is missing",
	Transposed:   "transposed",
	Exchanged:    "exchanged",
	OtherReading: "misread",
	DoRAAsPlain:  "DoRA merged as plain LoRA",
	Other:        "another adapter",
	Foreign:      "a foreign change",
	Besides:      "a foreign change besides",
	Elements:     "some elements are wrong",
	NonFinite:    "NaN or infinity",
	Rounded:      "rounded in an unknown way",
	Tied:         "changed with the other end of a tie",
	Cast:         "another dtype",
	Reshaped:     "another shape",
	Missing:      "missing",
	Extra:        "extra: neither the base nor an adapter has it",
	Copied:       "stored again",
}

// Explain describes the finding of a tensor.
func (t *Tensor) Explain() string {
	text := findingTexts[t.Finding]
	if t.Text != "" {
		text += ": " + t.Text
	}
	return text
}

// Others names the other ways to round that explain all tensors.
func (r *Report) Others() string {
	var all []string
	for _, x := range r.OtherRoundings {
		all = append(all, string(x))
	}
	return strings.Join(all, ", ")
}
