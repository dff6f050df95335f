package resolve

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
)

// TestFeaturesAreThoseOfTheSpec compares the verdict on every feature with the registries
// of spec/APPLY.md and spec/METHODS.md.
func TestFeaturesAreThoseOfTheSpec(t *testing.T) {
	text, err := os.ReadFile("../../spec/APPLY.md")
	if err != nil {
		t.Fatal(err)
	}
	draft, err := os.ReadFile("../../spec/METHODS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, registry, _ := strings.Cut(string(text), "### 14.4 Features")
	registry, _, _ = strings.Cut(registry, "### 14.5")
	_, later, _ := strings.Cut(string(draft), "### Features of other dialects")
	later, _, _ = strings.Cut(later, "\n## ")
	registry += later
	_, methods, _ := strings.Cut(string(draft), "## 5. Registry")
	methods, _, _ = strings.Cut(methods, "| method |")
	registry += methods
	seen := make(map[format.Feature]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|[^|]*\\| ([^|]*) \\|").FindAllStringSubmatch(registry, -1) {
		name, does := format.Feature(m[1]), m[2]
		seen[name] = true
		want := Refused
		switch {
		case strings.HasPrefix(does, "applies with an answer"):
			want = NeedsOption
		case strings.HasPrefix(does, "applies"), does == "ignores":
			want = Applied
		}
		if f := find(name); f == nil || f.verdict != want {
			t.Errorf("the specification says of %q that a program %s; the verdict here is %v", name, does, verdictOf(name))
		}
	}
	for _, f := range features {
		if f.name != "" && !seen[f.name] {
			t.Errorf("the registry of the specification lacks %q", f.name)
		}
	}
}
