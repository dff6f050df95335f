package peft

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMethodsAreThoseOfTheSpec compares the methods with the registry of spec/APPLY.md, which tells
// those that change weights from the others.
func TestMethodsAreThoseOfTheSpec(t *testing.T) {
	text, err := os.ReadFile("../../spec/APPLY.md")
	if err != nil {
		t.Fatal(err)
	}
	_, registry, _ := strings.Cut(string(text), "### 14.5 Values of `peft-type`")
	registry, _, _ = strings.Cut(registry, "## 15.")
	change, others, _ := strings.Cut(registry, "Methods that add")
	n := 0
	for i, part := range []string{change, others} {
		for _, m := range regexp.MustCompile("`([A-Z0-9_]+)`").FindAllStringSubmatch(part, -1) {
			n++
			if method, known := Methods[m[1]]; !known || method.NoWeight != (i == 1) {
				t.Errorf("the specification lists %q, which is %+v here (known: %t)", m[1], method, known)
			}
		}
	}
	if n != len(Methods) {
		t.Errorf("the specification lists %d methods, want %d", n, len(Methods))
	}
}
