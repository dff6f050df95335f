package main

import (
	"strings"

	"github.com/loratool/loratool/internal/resolve"
)

// supportHelp is the table of features and verdicts, for a terminal.
func supportHelp() string {
	var b strings.Builder
	b.WriteString("What merge does with an adapter. loratool inspect ADAPTER says it of one.\n")
	last := ""
	for _, s := range resolve.Supports() {
		verdict := string(s.Verdict)
		if s.Option != "" {
			verdict = "with " + flagsFor(s.Option)
		}
		if verdict != last {
			b.WriteString("\n" + strings.ToUpper(verdict[:1]) + verdict[1:] + ":\n")
			last = verdict
		}
		for i, line := range wrap(flagsFor(s.What), helpColumns-4) {
			indent := "  - "
			if i > 0 {
				indent = "    "
			}
			b.WriteString(indent + line + "\n")
		}
	}
	return b.String()
}
