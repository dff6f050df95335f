package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func manCommand(a *app) *cli.Command {
	return &cli.Command{
		Name:  "man",
		Usage: "print the manual page: all commands with all their flags, for man",
		Action: func(*cli.Context) error {
			_, err := a.term.out.Write([]byte(a.manual()))
			return err
		},
	}
}

// manual is a manual page in the language of man(7). Its texts are those of the help.
func (a *app) manual() string {
	var b strings.Builder
	b.WriteString(".TH LORATOOL 1 \"\" \"loratool " + version + "\"\n.SH NAME\nloratool \\- merge LoRA adapters into checkpoints, remove them, and inspect both\n")
	b.WriteString(".SH SYNOPSIS\n")
	for _, c := range a.cli.Commands {
		b.WriteString(".B loratool " + roff(strings.TrimSpace(c.Name+" "+c.ArgsUsage)) + "\n.br\n")
	}
	for _, c := range a.cli.Commands {
		b.WriteString(".SH " + strings.ToUpper(c.Name) + "\n" + roff(c.Usage) + "\n")
		for _, p := range paragraphs(c.Description) {
			b.WriteString(".PP\n" + roff(p) + "\n")
		}
		for _, e := range examples[c.Name] {
			b.WriteString(".PP\n.nf\n" + roff(e) + "\n.fi\n")
		}
		for _, f := range shownFlags(c) {
			name, usage := flagHelp(f)
			b.WriteString(".TP\n" + roff(strings.TrimSpace(name)) + "\n" + roff(usage) + "\n")
		}
	}
	b.WriteString(".SH EXIT STATUS\n" + roff(strings.Join(strings.Fields(strings.TrimPrefix(exitCodesHelp, "Exit codes: ")), " ")) + "\n")
	return b.String()
}

// roff writes a text so that man shows it as it is. groff reads a page in the charset of the locale
// or in Latin-1, so characters beyond ASCII become escapes (groff_char(7)).
func roff(s string) string {
	var b strings.Builder
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		b.WriteString(`\&`)
	}
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r > 0x7e:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
