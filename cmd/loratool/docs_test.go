package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestExamplesOfTheREADMERun runs every command in a block of sh of the README, one after the
// other, in a directory that has testdata, and compares the output that the README shows after it.
func TestExamplesOfTheREADMERun(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	testdata, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := os.Symlink(testdata, "testdata"); err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```\n(?:\n^```\n(.*?)^```\n)?").FindAllStringSubmatch(string(readme), -1)
	ran := 0
	for _, block := range blocks {
		var shown bytes.Buffer
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSuffix(line, "\n")
			words := strings.Fields(strings.Replace(line, "go run ./cmd/loratool", "loratool", 1))
			if words[0] != "loratool" {
				continue // go test, which runs this
			}
			var errs bytes.Buffer
			if code := run(context.Background(), words, &shown, &errs); code != exitDone {
				t.Fatalf("%s exits with %d: %s", line, code, &errs)
			}
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

// timeless is an output without the times and rates that differ from run to run.
func timeless(text string) string {
	text = regexp.MustCompile(` \([0-9.]+ [kMG]?B/s\)`).ReplaceAllString(text, "") // not where it took no time
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
