package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// flagWord matches a flag or a command of the tool in a text.
var flagWord = regexp.MustCompile(`--[a-z]|\bloratool (clean|convert|extract|inspect|merge|spectrum|swap|unmerge)\b`)

// TestOnlyTheCommandKnowsFlags: texts of the library name its options and functions, and the
// command translates these to flags.
func TestOnlyTheCommandKnowsFlags(t *testing.T) {
	fset, files := source(t)
	seen := 0
	for _, f := range files {
		ofTool := strings.HasPrefix(f.room, "cmd/") || f.room == "internal/bench" // internal/bench runs commands
		if f.isTest {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			switch word := flagWord.FindString(text); {
			case word != "" && ofTool:
				seen++
			case word != "":
				t.Errorf("%s names %q: %q; name the option of the library", fset.Position(lit.Pos()), word, text)
			}
			return true
		})
	}
	if seen == 0 {
		t.Error("no text of the command names a flag: the test looks for the wrong thing")
	}
}

// commentColumns is the largest width of a comment; a tab counts four columns. Tables and formulas,
// which godoc shows as they are, may be wider.
const commentColumns = 100

// TestCommentsFitTheScreen checks comments on lines of their own.
func TestCommentsFitTheScreen(t *testing.T) {
	seen := 0
	eachComment(t, func(where, line string) {
		seen++
		if n := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    ")); n > commentColumns {
			t.Errorf("%s: %d columns, want at most %d", where, n, commentColumns)
		}
	})
	if seen < 4000 {
		t.Errorf("%d lines of comments, want thousands", seen)
	}
}

// mostWhat is the largest number of lines with the word "what" among a thousand lines of comment,
// tests included. Clauses with it hide the noun: "it removes what was merged" means the adapter.
// age, go-containerregistry and pebble have at most 3. The aim is below 20; until then the number
// may only decrease.
const mostWhat = 20

// whatWord matches the word in any case.
var whatWord = regexp.MustCompile(`(?i)\bwhat\b`)

// TestCommentsNameThings limits the clauses with "what" that stand in place of a noun.
func TestCommentsNameThings(t *testing.T) {
	lines, matches := 0, 0
	eachComment(t, func(_, line string) {
		lines++
		if whatWord.MatchString(line) {
			matches++
		}
	})
	switch n := (1000*matches + lines - 1) / lines; {
	case n > mostWhat:
		t.Errorf("%d of %d lines of comment (%d in a thousand) say %q, want at most %d in a thousand: name the thing",
			matches, lines, n, "what", mostWhat)
	case n < mostWhat:
		t.Logf("%d of %d lines of comment (%d in a thousand) say %q: lower mostWhat", matches, lines, n, "what")
	}
}

// eachComment calls f with every line of a comment that stands on its own line, except tables and
// code.
func eachComment(t *testing.T, f func(where, line string)) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			bare := strings.TrimLeft(line, "\t")
			if !strings.HasPrefix(bare, "// ") || strings.Contains(bare, "Code generated") {
				continue
			}
			f(fmt.Sprintf("%s:%d", path, i+1), line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
