package naming

import (
	"strconv"
	"testing"
)

// TestManyFirstSegmentsAreNoManyCandidates: the work for a base whose names share nothing grows
// with their number, not with its square, and an adapter that fits all of them is ambiguous in a
// few words.
func TestManyFirstSegmentsAreNoManyCandidates(t *testing.T) {
	names := make([]string, 100_000)
	for i := range names {
		names[i] = strconv.Itoa(i) + ".q.weight"
	}
	b := Index(names)
	if n := len(b.candidates("k.weight", nil, false)); n > 100 {
		t.Errorf("%d candidates for a base that has none of the names, want a few", n)
	}
	if _, missing, ambiguous := b.Match([]string{"q.weight"}); missing != nil || len(ambiguous) != enough {
		t.Errorf("Match of a name below every segment: missing %v, ambiguous %v", missing, ambiguous)
	}
}
