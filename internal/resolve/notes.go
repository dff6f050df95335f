package resolve

import (
	"fmt"

	"github.com/loratool/loratool/internal/fault"
)

// notes gathers what a user should know: each text once, with the names that it is about.
type notes struct {
	texts []string
	about map[string][]string
}

// maxNamed is how many names a note spells out.
const maxNamed = 3

// add adds a text of its own.
func (n *notes) add(format string, args ...any) {
	n.texts = append(n.texts, fmt.Sprintf(format, args...))
}

// of adds a name to those that a text is about.
func (n *notes) of(name, text string) {
	if n.about == nil {
		n.about = make(map[string][]string)
	}
	if n.about[text] == nil {
		n.texts = append(n.texts, text)
	}
	n.about[text] = append(n.about[text], name)
}

// list returns the texts in the order in which they came up.
func (n *notes) list() []string {
	var all []string
	for _, text := range n.texts {
		if names := n.about[text]; names != nil {
			text += ": " + fault.List(names, maxNamed)
		}
		all = append(all, text)
	}
	return all
}
