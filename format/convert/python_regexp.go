package convert

import (
	"errors"
	"strings"
	"time"

	"github.com/dlclark/regexp2/v2"
)

// pythonRegexp is a regular expression of Python's re. Go's regexp has no look-around and no back references, which keys of
// rank_pattern use; regexp2 is a backtracking engine like Python's, whose syntax differs in the few places that
// translatePython knows.
type pythonRegexp struct{ re *regexp2.Regexp }

// matchTimeout bounds one match: a backtracking engine can take for ever. A pattern that means something takes microseconds.
const matchTimeout = 250 * time.Millisecond

// errPythonOnly is an expression whose meaning in Python is not that of the engine here.
var errPythonOnly = errors.New("an expression that Python reads in a way that is not known here")

func compilePython(expr string) (*pythonRegexp, error) {
	translated, err := translatePython(expr)
	if err != nil {
		return nil, err
	}
	re, err := regexp2.Compile(`\A(?:` + translated + `)`)
	if err != nil {
		return nil, err
	}
	re.MatchTimeout = matchTimeout
	return &pythonRegexp{re}, nil
}

// match is re.match: it begins at the start of the text and, without a $, may end anywhere.
func (r *pythonRegexp) match(text string) (bool, error) { return r.re.MatchString(text) }

// translatePython rewrites what Python spells differently: (?P<name>…), (?P=name), {,n} and \Z. Names have no line breaks, so
// $ means the end in both.
func translatePython(expr string) (string, error) {
	var b strings.Builder
	named, numbered, inClass := false, false, false
	for i := 0; i < len(expr); {
		rest := expr[i:]
		n, to := 1, rest[:1]
		switch {
		case rest[0] == '\\' && len(rest) > 1:
			n, to = 2, rest[:2]
			if rest[1] == 'Z' && !inClass {
				to = `\z`
			}
			numbered = numbered || '1' <= rest[1] && rest[1] <= '9'
		case inClass:
			if strings.HasPrefix(rest, "-[") { // a difference of classes, which Python does not have
				return "", errPythonOnly
			}
			inClass = rest[0] != ']'
		case rest[0] == '[':
			inClass = true
			for _, open := range []string{"[^]", "[]", "[^"} { // a bracket that comes first is itself
				if strings.HasPrefix(rest, open) {
					n, to = len(open), strings.Replace(open, "]", `\]`, 1)
					break
				}
			}
		case strings.HasPrefix(rest, "(?P<"):
			n, to, named = 4, "(?<", true
		case strings.HasPrefix(rest, "(?P="):
			end := strings.IndexByte(rest, ')')
			if end < 0 {
				return "", errPythonOnly
			}
			n, to = end+1, `\k<`+rest[4:end]+">"
		case strings.HasPrefix(rest, "{,"):
			n, to = 2, "{0,"
		case strings.HasPrefix(rest, "(?") && isFlags(rest[2:]):
			return "", errPythonOnly // flags for the whole of the expression, which stands inside another one
		}
		b.WriteString(to)
		i += n
	}
	if named && numbered { // the two count groups in different orders
		return "", errPythonOnly
	}
	return b.String(), nil
}

// isFlags reports whether a group holds flags and nothing else.
func isFlags(s string) bool {
	n := 0
	for n < len(s) && strings.IndexByte("aiLmsux-", s[n]) >= 0 {
		n++
	}
	return n > 0 && n < len(s) && s[n] == ')'
}
