package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/resolve"
)

var update = flag.Bool("update", false, "write docs/support.md and other goldens anew")

// TestDocsSayWhatMergeDoes compares docs/support.md with the table that the program decides by.
func TestDocsSayWhatMergeDoes(t *testing.T) {
	const path = "../../docs/support.md"
	want := supportMarkdown()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s lacks %q, and has %q too many (-update writes it)", path, linesOnlyIn(want, string(got)), linesOnlyIn(string(got), want))
	}
}

// linesOnlyIn returns the lines of a that b has not.
func linesOnlyIn(a, b string) []string {
	return slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(strings.Split(b, "\n"), line) })
}

// supportMarkdown is docs/support.md.
func supportMarkdown() string {
	var b strings.Builder
	b.WriteString("# What merge applies\n\n<!-- go test ./cmd/loratool -update writes this page -->\n")
	for _, section := range []struct {
		verdict     resolve.Verdict
		title, text string
	}{
		{resolve.Applied, "Applied", "`merge` applies these without a flag."},
		{resolve.NeedsOption, "With a flag", "`merge` refuses these, and names the flag."},
		{resolve.Refused, "Refused", "`merge` refuses these by name, with the reason and what to do."},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", section.title, section.text)
		if section.verdict == resolve.NeedsOption {
			b.WriteString("| flag | for |\n|---|---|\n")
		}
		for _, s := range resolve.Supports() {
			switch {
			case s.Verdict != section.verdict:
			case s.Option != "":
				fmt.Fprintf(&b, "| `%s` | %s |\n", flagsFor(s.Option), strings.ReplaceAll(s.What, "|", `\|`))
			default:
				fmt.Fprintf(&b, "- %s\n", s.What)
			}
		}
	}
	return b.String()
}

// TestHelpSaysWhatMergeDoes: help support has every line of the table, and help merge --all every
// flag of it.
func TestHelpSaysWhatMergeDoes(t *testing.T) {
	support, merge := helpPage(t, "support"), helpPage(t, "merge", "--all")
	for _, s := range resolve.Supports() {
		if !strings.Contains(strings.Join(strings.Fields(support), " "), flagsFor(s.What)) {
			t.Errorf("help support does not say %q", s.What)
		}
		if s.Option != "" && !strings.Contains(merge, flagsFor(s.Option)) {
			t.Errorf("merge has no flag %s, which the table names for %q", flagsFor(s.Option), s.What)
		}
	}
}

// helpPage is a page of help.
func helpPage(t *testing.T, words ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(context.Background(), append([]string{"loratool", "help"}, words...), &out, &errs); code != exitDone {
		t.Fatalf("help %s = %d: %s", words, code, &errs)
	}
	return out.String()
}

// TestHelpFitsATerminal compares every page of help with testdata/help, and looks at its width.
func TestHelpFitsATerminal(t *testing.T) {
	pages := [][]string{nil, {"support"}}
	for _, name := range newApp(&terminal{}).commandNames() {
		pages = append(pages, []string{name})
		if strings.Contains(helpPage(t, name), "Flags for special cases") { // it leaves some out
			pages = append(pages, []string{name, "--all"})
		}
	}
	for _, words := range pages {
		page := helpPage(t, words...)
		for line := range strings.Lines(page) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpColumns {
				t.Errorf("help %s: %d columns, want at most %d: %s", words, n, helpColumns, line)
			}
		}
		if len(words) == 1 && words[0] != "support" && len(examples[words[0]]) == 0 {
			t.Errorf("help %s has no example", words)
		}
		golden := filepath.Join("testdata/help", strings.ReplaceAll(strings.Join(append([]string{"loratool"}, words...), "-"), "---", "-")+".txt")
		if *update {
			if err := errors.Join(os.MkdirAll("testdata/help", 0o777), os.WriteFile(golden, []byte(page), 0o666)); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || string(want) != page {
			t.Errorf("help %s is not %s (-update writes it; read the difference): %v", words, golden, err)
		}
	}
}
