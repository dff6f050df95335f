package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// helpColumns is the width of help pages: that of a terminal by default.
const helpColumns = 80

// rareFlags lists the flags that help shows only with --all. Few people need them, and an error
// tells those who do.
var rareFlags = []string{
	"accept-loss", "add-tensors", "again", "allow-nonfinite", "alpha", "any-base", "base-as", "base-as-skip", "by-layer", "dequantise", "exclude", "expert-input", "expert-slowest", "expert-turns", "from",
	"grow-vocabulary", "include", "linear-input", "max-manifest", "max-memory", "max-rank", "new-undo",
	"no-progress", "no-sharing", "only", "out-dtype", "out-proj-twice", "prefix", "recompute-residual", "requantise", "scale", "seed", "stochastic", "strict", "tied", "without", "workers",
}

// examples lists commands that run in a clone of the repository.
var examples = map[string][]string{
	"merge": {
		"loratool merge testdata/demo/base testdata/demo/adapter-r8 -o merged-demo",
		"loratool merge testdata/demo/base testdata/demo/adapter-r8 -o half -w 0.5 --undo",
	},
	"unmerge": {
		"loratool merge testdata/demo/base testdata/demo/adapter-r8 -o merged --undo",
		"loratool unmerge merged testdata/demo/adapter-r8 -o restored",
	},
	"swap":    {"loratool swap half --remove testdata/demo/adapter-r8 --add testdata/demo/adapter-r8 -w 0.25 -o swapped"},
	"extract": {"loratool extract testdata/demo/base merged -o extracted --rank 8"},
	"inspect": {"loratool inspect testdata/demo/adapter-r8 --spectrum", "loratool inspect testdata/demo/base --rank 8"},
	"audit":   {"loratool audit testdata/demo/base merged testdata/demo/adapter-r8"},
	"diff":    {"loratool diff testdata/demo/adapter-r8 extracted"},
	"combine": {"loratool combine testdata/demo/adapter-r8 extracted -w 0.5 -w 0.5 -o mean.lora"},
	"resize":  {"loratool resize testdata/demo/adapter-r8 -o smaller.lora --energy 0.9"},
	"convert": {"loratool convert testdata/demo/adapter-r8 -o demo.lora"},
	"restore": {"loratool restore demo.lora -o source"},
	"bundle": {
		"loratool bundle add all.lora testdata/demo/adapter-r8 extracted",
		"loratool inspect all.lora#extracted",
	},
	"verify": {"loratool verify demo.lora"},
	"sign": {
		"loratool sign --new-key mine",
		"loratool sign demo.lora --key mine.key",
		"loratool verify demo.lora --key mine.pub",
	},
	"dump":       {"loratool dump demo.lora"},
	"clean":      {"loratool clean . --dry-run"},
	"version":    {"loratool version --licences"},
	"help":       {"loratool help merge --all", "loratool help support"},
	"completion": {"source <(loratool completion bash)"},
	"man":        {"loratool man | man -l -"},
}

// helpTopic is the subject of a request for help.
type helpTopic struct {
	name string // of a command, or support; "" is the whole program
	all  bool   // rare flags too
}

func (helpTopic) Error() string { return "help is wanted" }

func helpCommand(a *app) *cli.Command {
	all := false
	return &cli.Command{
		Name:      "help",
		Usage:     "explain a command, or what merge applies",
		ArgsUsage: "[COMMAND|support] [--all]",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "show the flags for special cases as well", Destination: &all}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef("loratool help COMMAND", "help explains one command, got %d", c.NArg())
			}
			return a.help(helpTopic{c.Args().First(), all})
		},
	}
}

// help prints a page of help.
func (a *app) help(topic helpTopic) error {
	command := a.cli.Command(topic.name)
	switch {
	case topic.name == "":
		a.term.out.Write([]byte(a.overview()))
	case command != nil:
		a.term.out.Write([]byte(commandHelp(command, topic.all)))
	case topic.name == "support":
		a.term.out.Write([]byte(supportHelp()))
	default:
		return unknown("command", topic.name, append(a.commandNames(), "support"), helpHint(""))
	}
	return nil
}

// overview lists the commands.
func (a *app) overview() string {
	var b strings.Builder
	b.WriteString("loratool merges LoRA adapters into checkpoints, removes them again, and shows\ntheir contents.\n\nUsage: loratool COMMAND\n\nCommands:\n")
	for _, c := range a.cli.Commands {
		writeItem(&b, c.Name, c.Usage, 14)
	}
	b.WriteString("\n  loratool help COMMAND    flags and examples of a command\n" +
		"  loratool help support    what merge applies, and what it refuses\n\n" + exitCodesHelp)
	return b.String()
}

// commandHelp is the help of a command.
func commandHelp(c *cli.Command, all bool) string {
	var b strings.Builder
	writeText(&b, "loratool "+c.Name+": "+c.Usage, "")
	b.WriteString("\nUsage:\n")
	writeText(&b, strings.TrimSpace("loratool "+c.Name+" "+c.ArgsUsage), "  ")
	for _, paragraph := range paragraphs(c.Description) {
		b.WriteString("\n")
		writeText(&b, paragraph, "")
	}
	if len(examples[c.Name]) > 0 {
		b.WriteString("\nExamples:\n")
		for _, e := range examples[c.Name] {
			writeCommand(&b, e)
		}
	}
	var shown []cli.Flag
	nRare := 0
	for _, f := range shownFlags(c) {
		if !all && slices.Contains(rareFlags, f.Names()[0]) {
			nRare++
			continue
		}
		shown = append(shown, f)
	}
	if len(shown) > 0 {
		b.WriteString("\nFlags:\n")
		for _, f := range shown {
			name, usage := flagHelp(f)
			writeItem(&b, name, usage, 22)
		}
	}
	if nRare > 0 {
		fmt.Fprintf(&b, "\nFlags for special cases (%d): loratool help %s --all\n", nRare, c.Name)
	}
	b.WriteString("\n" + exitCodesHelp)
	return b.String()
}

// flagHelp is the form of a flag, with its value, and its use.
func flagHelp(f cli.Flag) (name, usage string) {
	names := f.Names()
	name = "    --" + names[0]
	for _, alias := range names[1:] {
		if len(alias) == 1 {
			name = "-" + alias + ", --" + names[0]
		}
	}
	d := f.(cli.DocGenerationFlag)
	usage = d.GetUsage()
	if before, rest, ok := strings.Cut(usage, "`"); ok {
		value, after, _ := strings.Cut(rest, "`")
		name, usage = name+" "+value, before+value+after
	} else if d.TakesValue() {
		name += " VALUE"
	}
	if text := d.GetDefaultText(); text != "" && d.TakesValue() && d.GetValue() != "" && d.GetValue() != "0" && !strings.Contains(usage, "(default") {
		usage += " (default: " + strings.Trim(text, `"`) + ")"
	}
	return name, usage
}

// paragraphs returns the paragraphs of a text, each on one line.
func paragraphs(text string) (all []string) {
	for _, p := range strings.Split(text, "\n\n") {
		if p = strings.Join(strings.Fields(p), " "); p != "" {
			all = append(all, p)
		}
	}
	return all
}

// writeText writes a text in lines that begin with indent.
func writeText(b *strings.Builder, text, indent string) {
	for _, line := range wrap(text, helpColumns-len(indent)) {
		b.WriteString(indent + line + "\n")
	}
}

// writeItem writes a word, and beside it or below it the text that explains it.
func writeItem(b *strings.Builder, word, text string, column int) {
	head := "  " + word
	if utf8.RuneCountInString(head) >= column {
		b.WriteString(head + "\n")
		head = ""
	}
	for _, line := range wrap(text, helpColumns-column) {
		b.WriteString(head + strings.Repeat(" ", column-utf8.RuneCountInString(head)) + line + "\n")
		head = ""
	}
}

// writeCommand writes a command in the form for a shell, a long one on several lines.
func writeCommand(b *strings.Builder, command string) {
	lines := wrap(command, helpColumns-4)
	b.WriteString("  " + strings.Join(lines, " \\\n    ") + "\n")
}

// quantity is a number with its unit.
var quantity = regexp.MustCompile(`([0-9]) ([kMGT]?B(?:/s)?|m?s\b|%)`)

// wrap breaks a text into lines of at most width characters, where it has spaces. A number and its
// unit stay together.
func wrap(text string, width int) (lines []string) {
	const joined = "\x00"
	line := ""
	for _, word := range strings.Fields(quantity.ReplaceAllString(text, "$1"+joined+"$2")) {
		word = strings.ReplaceAll(word, joined, " ")
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
