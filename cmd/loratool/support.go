package main

import (
	"strings"

	"github.com/loratool/loratool/internal/resolve"
)

// supportHelp is the table of what merge does with an adapter, for a terminal.
func supportHelp() string {
	var b strings.Builder
	b.WriteString("WHAT MERGE DOES WITH AN ADAPTER\n")
	last := ""
	for _, s := range resolve.Supports() {
		verdict := string(s.Verdict)
		if s.Option != "" {
			verdict = "with " + flagsFor(s.Option)
		}
		if verdict != last {
			b.WriteString("   " + verdict + ":\n")
			last = verdict
		}
		for i, line := range wrap(flagsFor(s.What), 96) {
			indent := "      "
			if i > 0 {
				indent += "   "
			}
			b.WriteString(indent + line + "\n")
		}
	}
	return b.String()
}

// wrap breaks a text into lines of at most width bytes, where it has spaces.
func wrap(text string, width int) []string {
	var lines []string
	for len(text) > width {
		at := strings.LastIndexByte(text[:width+1], ' ')
		if at < 0 {
			break
		}
		lines = append(lines, text[:at])
		text = text[at+1:]
	}
	return append(lines, text)
}
