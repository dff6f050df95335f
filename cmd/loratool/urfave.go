package main

// This file holds everything that works around traps of urfave/cli. Without it
//
//   - flags after the first argument count as arguments (arrange moves them to the front),
//   - an unknown flag gets no suggestion (arrangeFlags),
//   - an alias of a flag shows in the help (formerFlag),
//   - numbers follow the rules of Go, by which 010 is 8 (checkNumber),
//   - a comma cuts the value of a flag in two (DisableSliceFlagSeparator),
//   - an error can end the process, and its text goes out twice (ExitErrHandler, ErrWriter),
//   - commands do not inherit what the application says about errors and help (newApp).
//
// The other files only declare flags and read their values.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// app wraps urfave/cli. Flags may stand anywhere, unknown names are errors with a suggestion, only
// results go to stdout, and only main exits.
type app struct {
	cli  *cli.App
	term *terminal
}

func newApp(t *terminal) *app {
	usage := func(command string) cli.OnUsageErrorFunc {
		return func(_ *cli.Context, err error, _ bool) error { return usagef(helpHint(command), "%v", err) }
	}
	a := &app{term: t}
	a.cli = &cli.App{
		Name:                      "loratool",
		Usage:                     "merge LoRA adapters into checkpoints, remove them, and inspect both",
		Version:                   version,
		HideVersion:               true,
		HideHelp:                  true, // help.go has its own
		Writer:                    t.out,
		ErrWriter:                 io.Discard,
		ExitErrHandler:            func(*cli.Context, error) {}, // the default one exits
		OnUsageError:              usage(""),
		DisableSliceFlagSeparator: true,
		Commands: []*cli.Command{
			mergeCommand(t), unmergeCommand(t), swapCommand(t), extractCommand(t), inspectCommand(t), diffCommand(t), auditCommand(t), combineCommand(t), resizeCommand(t), convertCommand(t), restoreCommand(t), bundleCommand(t), verifyCommand(t), signCommand(t), dumpCommand(t), cleanCommand(t), versionCommand(t),
		},
		Action: func(*cli.Context) error { return a.help(helpTopic{}) },
	}
	a.cli.Commands = append(a.cli.Commands, helpCommand(a), completionCommand(a), manCommand(a))
	for _, c := range a.cli.Commands {
		c.OnUsageError = usage(c.Name) // not inherited
		c.HideHelp = true
		c.Flags = append(c.Flags, idleFlags(c)...)
	}
	return a
}

// idleFlags returns the flags that scripts pass to every command and that c does not have. c
// accepts them without effect.
func idleFlags(c *cli.Command) (all []cli.Flag) {
	for _, f := range []*cli.BoolFlag{
		{Name: "quiet", Aliases: []string{"q"}, Hidden: true}, {Name: "verbose", Aliases: []string{"v"}, Hidden: true}, {Name: "no-progress", Hidden: true},
	} {
		if findFlag(c, f.Name) == nil {
			all = append(all, f)
		}
	}
	return all
}

// shownFlags returns the flags of a command that are not hidden.
func shownFlags(c *cli.Command) (all []cli.Flag) {
	for _, f := range c.Flags {
		if v, ok := f.(cli.VisibleFlag); !ok || v.IsVisible() {
			all = append(all, f)
		}
	}
	return all
}

// run parses and runs a command line.
func (a *app) run(ctx context.Context, args []string) error {
	arranged, err := a.arrange(args)
	var topic helpTopic
	if errors.As(err, &topic) {
		return a.help(topic)
	}
	if err != nil {
		return err
	}
	return a.cli.RunContext(ctx, arranged)
}

// arrange moves the flags of a command before its arguments, each as --name=value, because the
// library takes everything after the first argument for arguments. It rejects flags that the
// command does not have, and suggests the nearest name.
func (a *app) arrange(args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	a.term.json = asksForJSON(args) // for errors in the rest of the command line
	if slices.Contains([]string{"-h", "--help"}, args[1]) {
		return nil, helpTopic{}
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
	a.term.roles = rolesOf(command.ArgsUsage, flags, rest)
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
			return nil, nil, helpTopic{command.Name, slices.Contains(args, "--all")}
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		name = formerFlag(command.Name, name)
		flag := findFlag(command, name)
		if flag == nil {
			return nil, nil, unknown("flag", arg, flagNames(command), helpHint(command.Name))
		}
		_, isBool := flag.(*cli.BoolFlag)
		if isBool && hasValue {
			if _, err := strconv.ParseBool(value); err != nil {
				hint := helpHint(command.Name)
				if findFlag(command, name+"-file") != nil {
					hint = "--" + name + "-file " + value + " says where the file goes"
				}
				return nil, nil, usagef(hint, "--%s takes no value, got %q", name, value)
			}
		}
		if !isBool && !hasValue {
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

// formerFlag returns the present name of a renamed flag.
func formerFlag(command, name string) string {
	if (command == "unmerge" || command == "swap") && name == "undo" {
		return "undo-file"
	}
	return name
}

func findFlag(command *cli.Command, name string) cli.Flag {
	for _, f := range command.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// checkNumber checks the value of a numeric flag before the library reads it by the rules of Go. It
// returns the value in the form for the library.
func checkNumber(flag cli.Flag, arg, value, hint string) (string, error) {
	switch flag.(type) {
	case *cli.IntFlag, *cli.Int64Flag:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return "", usagef(hint, "%s takes a whole number, got %q", arg, value)
		}
		return fmt.Sprint(n), nil // without the zeros that would make it octal
	case *cli.DurationFlag:
		if _, err := time.ParseDuration(value); err != nil {
			return "", usagef(hint, "%s takes a time such as 36h or 90m, got %q", arg, value)
		}
	case *cli.Float64Flag:
		if _, ok := parseDecimal(value); !ok {
			return "", usagef(hint, "%s takes a number such as 0.7, got %q", arg, value)
		}
	}
	return value, nil
}

// flagNames lists the long names of a command's flags, with their dashes.
func flagNames(command *cli.Command) (names []string) {
	for _, f := range shownFlags(command) {
		for _, name := range f.Names() {
			if len(name) > 1 {
				names = append(names, "--"+name)
			}
		}
	}
	return names
}
