package fault_test

import (
	"testing"

	"github.com/loratool/loratool/internal/fault"
)

func TestCountAgreesWithItsNoun(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 tensors", 1: "1 tensor", 2: "2 tensors", 999: "999 tensors", 1000: "1,000 tensors",
		405504: "405,504 tensors", -1: "-1 tensors", -123456: "-123,456 tensors",
	} {
		if got := fault.Count(n, "tensor"); got != want {
			t.Errorf("Count(%d, tensor) = %q, want %q", n, got, want)
		}
	}
}

func TestAVerbAgreesWithItsNumber(t *testing.T) {
	for n, want := range map[int]string{0: "are", 1: "is", 2: "are", -1: "are"} {
		if got := fault.Choose(n, "is", "are"); got != want {
			t.Errorf("Choose(%d, is, are) = %q, want %q", n, got, want)
		}
	}
}
