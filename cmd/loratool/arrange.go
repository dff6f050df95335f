package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// What stands around urfave/cli is in this file: app is urfave/cli, wired so that flags may stand anywhere, whatever is unknown is an error with a suggestion, nothing is
// printed to stdout but results, and nothing exits but main.
type app struct {
	cli  *cli.App
	term *terminal
}

// run parses and runs a command line.
func (a *app) run(ctx context.Context, args []string) error {
	arranged, err := a.arrange(args)
	if err != nil {
		return err
	}
	return a.cli.RunContext(ctx, arranged)
}

// arrange puts the flags of a command before its arguments, each as --name=value, because the library takes what follows the
// first argument as arguments. It rejects what the command's own list does not have, with the nearest name.
func (a *app) arrange(args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	a.term.json = asksForJSON(args) // so that an error in the rest is reported as asked for
	if slices.Contains([]string{"-h", "--help", "help"}, args[1]) {
		return []string{args[0], "--help"}, nil
	}
	if slices.Contains([]string{"-v", "--version"}, args[1]) && len(args) == 2 {
		return []string{args[0], "version"}, nil
	}
	args = a.commandFirst(args)
	name := args[1]
	command := a.cli.Command(name)
	switch {
	case command == nil && strings.HasPrefix(name, "-"):
		return nil, unknown("flag", name, nil, helpHint(""))
	case command == nil:
		return nil, unknown("command", name, a.commandNames(), helpHint(""))
	}
	a.term.command, a.term.usage = name, "loratool "+name+" "+command.ArgsUsage
	flags, rest, err := arrangeFlags(command, args[2:])
	if err != nil {
		return nil, err
	}
	return slices.Concat(args[:2], flags, []string{"--"}, rest), nil
}

// asksForJSON reports whether one of the flags looks like --json.
func asksForJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "-json", "--json", "-json=true", "--json=true":
			return true
		}
	}
	return false
}

// commandFirst moves the flags that stand before the command behind it.
func (a *app) commandFirst(args []string) []string {
	if !strings.HasPrefix(args[1], "-") {
		return args
	}
	for i, arg := range args {
		if i > 1 && a.cli.Command(arg) != nil {
			return slices.Concat(args[:1], args[i:i+1], args[1:i], args[i+1:])
		}
	}
	return args
}

func (a *app) commandNames() (names []string) {
	for _, c := range a.cli.Commands {
		names = append(names, c.Name)
	}
	return names
}

func arrangeFlags(command *cli.Command, args []string) (flags, rest []string, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return flags, append(rest, args[i+1:]...), nil
		case len(arg) < 2 || arg[0] != '-':
			rest = append(rest, arg)
			continue
		case arg == "-h" || arg == "--help":
			return []string{"--help"}, nil, nil
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flag := findFlag(command, name)
		if flag == nil {
			return nil, nil, unknown("flag", arg, flagNames(command), helpHint(command.Name))
		}
		if _, isBool := flag.(*cli.BoolFlag); !isBool && !hasValue {
			if standsAlone(flag) && (i+1 == len(args) || strings.HasPrefix(args[i+1], "-")) {
				flags = append(flags, "--"+name+"=")
				continue
			}
			if i+1 == len(args) {
				return nil, nil, usagef(helpHint(command.Name), "flag %s needs a value", arg)
			}
			i++
			value, hasValue = args[i], true
		}
		if hasValue {
			if value, err = checkNumber(flag, strings.TrimSuffix(arg, "="+value), value, helpHint(command.Name)); err != nil {
				return nil, nil, err
			}
			flags = append(flags, "--"+name+"="+value)
		} else {
			flags = append(flags, "--"+name)
		}
	}
	return flags, rest, nil
}

// standsAlone reports whether a flag may stand without the value that it can have.
func standsAlone(flag cli.Flag) bool {
	g, ok := flag.(*cli.GenericFlag)
	if ok {
		_, ok = g.Value.(*optionalPath)
	}
	return ok
}

func findFlag(command *cli.Command, name string) cli.Flag {
	for _, f := range command.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// flagNames lists the long names of a command's flags, with their dashes.
func flagNames(command *cli.Command) (names []string) {
	for _, f := range command.Flags {
		for _, name := range f.Names() {
			if len(name) > 1 {
				names = append(names, "--"+name)
			}
		}
	}
	return names
}

// unknown is the error for a name that is none of those that are known.
func unknown(what, name string, known []string, hint string) error {
	if near := nearest(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return usagef(hint, "unknown %s %q", what, name)
}

// nearest is the known name that takes the fewest edits to make of name, at most one in three letters; "" where all are farther.
func nearest(name string, known []string) string {
	best, least := "", (len(strings.TrimLeft(name, "-"))+2)/3+1
	for _, k := range known {
		if d := edits(strings.TrimLeft(name, "-"), strings.TrimLeft(k, "-")); d < least {
			best, least = k, d
		}
	}
	return best
}

// edits counts the letters that are inserted, left out, exchanged or swapped with their neighbour to make b of a (optimal string
// alignment).
func edits(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range len(b) {
		d[0][j+1] = j + 1
	}
	for i := range len(a) {
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			d[i+1][j+1] = min(d[i][j+1]+1, d[i+1][j]+1, d[i][j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
