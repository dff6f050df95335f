package architecture

import (
	"os"
	"strings"
	"testing"
)

// TestTablesAreThoseOfTheSpec: spec/NAMES.md has every table, word for word.
func TestTablesAreThoseOfTheSpec(t *testing.T) {
	spec, err := os.ReadFile("../../spec/NAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := files.ReadDir("tables")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := files.ReadFile("tables/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(spec), "```\n"+strings.TrimSpace(string(text))+"\n```\n") {
			t.Errorf("spec/NAMES.md does not have the table %s as it is", e.Name())
		}
	}
	if n := strings.Count(string(spec), "```") / 2; n != len(entries) {
		t.Errorf("spec/NAMES.md has %d tables, want %d", n, len(entries))
	}
}
