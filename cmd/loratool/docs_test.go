package main

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestExamplesOfTheREADMERun runs every command in a block of sh of the README, one after the
// other, in a directory that has testdata, and compares the output that the README shows after it.
func TestExamplesOfTheREADMERun(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	inClone(t)
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```\n(?:\n^```\n(.*?)^```\n)?").FindAllStringSubmatch(string(readme), -1)
	ran := 0
	for _, block := range blocks {
		var shown bytes.Buffer
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSuffix(line, "\n")
			line = strings.Replace(line, "go run ./cmd/loratool", "loratool", 1)
			if !strings.HasPrefix(line, "loratool ") {
				continue // go test, which runs this
			}
			runLine(t, line, &shown)
			ran++
		}
		if want := block[2]; want != "" && timeless(shown.String()) != timeless(want) {
			t.Errorf("%sshows\n%s\nand the README has\n%s", block[1], &shown, want)
		}
	}
	if ran < 9 {
		t.Errorf("%d examples ran, want 9 or more", ran)
	}
}

// TestExamplesOfTheHelpRun runs the examples of all pages, in the order of the commands.
func TestExamplesOfTheHelpRun(t *testing.T) {
	inClone(t)
	ran := 0
	for _, name := range newApp(&terminal{}).commandNames() {
		for _, line := range examples[name] {
			if !strings.HasPrefix(line, "loratool ") || strings.Contains(line, "|") {
				continue // for a shell
			}
			runLine(t, line, new(bytes.Buffer))
			ran++
		}
	}
	if ran < 12 {
		t.Errorf("%d examples ran, want 12 or more", ran)
	}
}

// inClone goes to a directory that has the testdata of a clone.
func inClone(t *testing.T) {
	t.Helper()
	testdata, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := os.Symlink(testdata, "testdata"); err != nil {
		t.Fatal(err)
	}
}

// runLine runs a command line, which must succeed.
func runLine(t *testing.T, line string, out *bytes.Buffer) {
	t.Helper()
	var errs bytes.Buffer
	if code := run(context.Background(), strings.Fields(line), out, &errs); code != exitDone {
		t.Fatalf("%s exits with %d: %s", line, code, &errs)
	}
}

// timeless is an output without the times and rates that differ from run to run.
func timeless(text string) string {
	text = regexp.MustCompile(` \([0-9.]+ [kMG]?B/s(?: read)?\)`).ReplaceAllString(text, "") // not where it took no time
	return regexp.MustCompile(`[0-9.]+ m?s\b`).ReplaceAllString(text, "N s")
}

// TestLinksOfTheDocsLeadSomewhere follows the links between the texts for people, headings
// included.
func TestLinksOfTheDocsLeadSomewhere(t *testing.T) {
	texts, err := filepath.Glob("../../*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"../../docs/*.md", "../../spec/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, more...)
	}
	link := regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	seen := 0
	for _, path := range texts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			seen++
			target := path
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(path), filepath.FromSlash(m[1]))
			}
			there, err := os.ReadFile(target)
			if _, statErr := os.Stat(target); statErr != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			} else if m[2] != "" && (err != nil || !hasHeading(string(there), m[2][1:])) {
				t.Errorf("%s links to %s%s, and there is no such heading", path, m[1], m[2])
			}
		}
	}
	if seen < 20 {
		t.Errorf("%d links, want 20 or more", seen)
	}
}

// hasHeading reports whether a text has a heading with the anchor that GitHub gives it.
func hasHeading(text, anchor string) bool {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		a := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		if strings.ReplaceAll(a, " ", "-") == anchor {
			return true
		}
	}
	return false
}

// TestThePictureOfTheREADMEIsTheOutput draws docs/spectrum.svg: the table that the command above it
// prints.
func TestThePictureOfTheREADMEIsTheOutput(t *testing.T) {
	const path, command = "../../docs/spectrum.svg", "loratool inspect testdata/demo/adapter-r8 --spectrum"
	var out bytes.Buffer
	runLine(t, strings.Replace(command, "testdata", "../../testdata", 1), &out)
	_, table, ok := strings.Cut(out.String(), "layers  rank")
	if !ok {
		t.Fatalf("no table of spectra in %s", &out)
	}
	want := picture(append([]string{"$ " + command, ""}, strings.Split("layers  rank"+strings.TrimRight(table, "\n"), "\n")...))
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is not what the command prints (-update draws it): %v", path, err)
	}
}

// picture is a terminal with some lines, as SVG.
func picture(lines []string) string {
	const letter, line, margin = 8.4, 20, 16
	columns := 0
	for _, l := range lines {
		columns = max(columns, utf8.RuneCountInString(l))
	}
	var b strings.Builder
	width, height := int(letter*float64(columns))+2*margin, line*len(lines)+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="#1e1e2e"/>`+"\n", width, height)
	for i, l := range lines {
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#cdd6f4" xml:space="preserve">%s</text>`+"\n", margin, margin+line*i+15, html.EscapeString(l))
	}
	return b.String() + "</svg>\n"
}
