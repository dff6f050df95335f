package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// flagWord matches a flag or a command of the tool in a text.
var flagWord = regexp.MustCompile(`--[a-z]|\bloratool (clean|convert|extract|inspect|merge|spectrum|swap|unmerge)\b`)

// TestOnlyTheCommandKnowsFlags: the texts of the library name its own options and functions, and
// the command turns them into flags.
func TestOnlyTheCommandKnowsFlags(t *testing.T) {
	fset, files := source(t)
	seen := 0
	for _, f := range files {
		ofTool := strings.HasPrefix(f.room, "cmd/") || f.room == "internal/bench" // which runs commands
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
