package naming

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
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

// TestDivisionsAreThoseOfTheSpec compares the fused modules with spec/NAMES.md, section 3, line by
// line.
func TestDivisionsAreThoseOfTheSpec(t *testing.T) {
	text, err := os.ReadFile("../../spec/NAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	plain := func(cell string) string {
		return strings.NewReplacer("`", "", ",", "").Replace(strings.TrimSpace(cell))
	}
	var want []*Division
	for line := range strings.Lines(between(t, string(text), "| fused | parts |", "**Rows.**")) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && strings.Contains(cells[1], "`") {
			want = append(want, newDivision(plain(cells[1]), plain(cells[2]), grouping(plain(cells[3])), plain(cells[4]), plain(cells[5])))
		}
	}
	if !slices.EqualFunc(divisions, want, func(a, b *Division) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("the specification has %d divisions, want the %d of the table, each the same", len(want), len(divisions))
	}
}
