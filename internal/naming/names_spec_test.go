package naming

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestSpellingsAreThoseOfTheSpec compares the beginnings of names with the table in spec/NAMES.md.
func TestSpellingsAreThoseOfTheSpec(t *testing.T) {
	text, err := os.ReadFile("../../spec/NAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (denoiser|text encoder) \\| ([0-9]) \\| (yes|no) \\| `([a-z_0-9]+)` \\|$")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		want = append(want, fmt.Sprint(m[1:]))
	}
	var got []string
	for _, s := range spellings {
		kind, flat := "denoiser", "no"
		if s.kind == textEncoder {
			kind = "text encoder"
		}
		if s.flat {
			flat = "yes"
		}
		got = append(got, fmt.Sprint([]string{s.prefix, kind, fmt.Sprint(s.number), flat, s.name}))
	}
	if !slices.Equal(got, want) {
		t.Errorf("spellings\n%q\nthe specification has\n%q", got, want)
	}
}
