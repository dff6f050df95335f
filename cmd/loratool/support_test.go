package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/resolve"
)

var update = flag.Bool("update", false, "write the table of the README anew")

// TestREADMESaysWhatMergeDoes compares the table of the README with the one that the program
// decides by.
func TestREADMESaysWhatMergeDoes(t *testing.T) {
	const path, begin, end = "../../README.md", "<!-- What merge does: go test ./cmd/loratool -update -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("the README has no table between %q and %q", begin, end)
	}
	want := supportMarkdown()
	if *update {
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("the table of the README lacks %q, and has %q too many (-update writes it)", linesOnlyIn(want, got), linesOnlyIn(got, want))
	}
}

// linesOnlyIn returns the lines of a that b has not.
func linesOnlyIn(a, b string) []string {
	return slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(strings.Split(b, "\n"), line) })
}

// supportMarkdown is the table of the README.
func supportMarkdown() string {
	var b strings.Builder
	b.WriteString("| | what the adapter has, or is |\n|---|---|\n")
	for _, s := range resolve.Supports() {
		verdict := string(s.Verdict)
		if s.Option != "" {
			verdict = "with `" + flagsFor(s.Option) + "`"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", verdict, strings.ReplaceAll(s.What, "|", `\|`))
	}
	return b.String()
}

// TestHelpSaysWhatMergeDoes: inspect --help has every line of the table, and merge has every flag
// of it.
func TestHelpSaysWhatMergeDoes(t *testing.T) {
	help := func(command string) string {
		var out, errs bytes.Buffer
		if code := run(context.Background(), []string{"loratool", command, "--help"}, &out, &errs); code != exitDone {
			t.Fatalf("%s --help = %d: %s", command, code, &errs)
		}
		return strings.Join(strings.Fields(out.String()), " ")
	}
	inspect, mergeHelp := help("inspect"), help("merge")
	for _, s := range resolve.Supports() {
		if !strings.Contains(inspect, s.What) {
			t.Errorf("inspect --help does not say %q", s.What)
		}
		if s.Option != "" && !strings.Contains(mergeHelp, flagsFor(s.Option)) {
			t.Errorf("merge has no flag %s, which the table names for %q", flagsFor(s.Option), s.What)
		}
	}
}
