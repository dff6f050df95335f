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
