package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// app is urfave/cli, wired so that flags may stand anywhere, whatever is unknown is an error with a suggestion, nothing is
// printed to stdout but results, and nothing exits but main.
type app struct {
	cli  *cli.App
	term *terminal
}

func newApp(t *terminal) *app {
	usage := func(_ *cli.Context, err error, _ bool) error { return usagef(helpHint(""), "%v", err) }
	a := &app{term: t}
	a.cli = &cli.App{
		Name:                      "loratool",
		Usage:                     "merge LoRA adapters into checkpoints, and see what is in them",
		Version:                   version,
		HideVersion:               true,
		HideHelpCommand:           true,
		Writer:                    t.out,
		ErrWriter:                 io.Discard,
		ExitErrHandler:            func(*cli.Context, error) {}, // the default one exits
		OnUsageError:              usage,
		DisableSliceFlagSeparator: true,
		CustomAppHelpTemplate:     cli.AppHelpTemplate + "\n" + exitCodesHelp,
		Commands: []*cli.Command{
			mergeCommand(t), unmergeCommand(t), swapCommand(t), extractCommand(t), inspectCommand(t), convertCommand(t), verifyCommand(t), dumpCommand(t), versionCommand(t),
		},
		Action: func(c *cli.Context) error {
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range a.cli.Commands {
		c.OnUsageError = usage // not inherited
		c.HideHelpCommand = true
		c.CustomHelpTemplate = cli.CommandHelpTemplate + "\n" + exitCodesHelp
		if c.Name == "inspect" {
			c.CustomHelpTemplate = cli.CommandHelpTemplate + "\n" + supportHelp() + "\n" + exitCodesHelp
		}
	}
	return a
}

func helpHint(command string) string {
	return strings.TrimSpace("loratool "+command) + " --help shows what there is"
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
		return nil, unknown("flag", name, "", helpHint(""))
	case command == nil:
		return nil, unknown("command", name, cli.SuggestCommand(a.cli.Commands, name), helpHint(""))
	}
	a.term.command = name
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

// unknown is the error for a name that is not there; nearest is what the library suggests: a flag, or a whole question.
func unknown(what, name, nearest, hint string) error {
	switch {
	case strings.HasPrefix(nearest, "Did you mean"):
		hint = "d" + strings.TrimSuffix(nearest[1:], "?") + "?"
	case strings.Trim(nearest, "-") != "" && nearest != "--help":
		hint = fmt.Sprintf("did you mean %s?", nearest)
	}
	return usagef(hint, "unknown %s %q", what, name)
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
			return nil, nil, unknown("flag", arg, cli.SuggestFlag(command.Flags, name, true), helpHint(command.Name))
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

// common are the options that every command has.
type common struct {
	json, quiet, verbose, noProgress bool
	workers                          int
}

func (o *common) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Destination: &o.json},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no warnings and no summary", Destination: &o.quiet},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "print every layer", Destination: &o.verbose},
		&cli.BoolFlag{Name: "no-progress", Usage: "show no progress bar", Destination: &o.noProgress},
		&cli.IntFlag{Name: "workers", Usage: "number of goroutines that compute (default: one per processor)", Destination: &o.workers},
	}
}

func versionCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Destination: &t.json}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("loratool version", "version takes no argument")
			}
			if t.json {
				return t.document("version", map[string]any{"version": version})
			}
			t.printf("loratool %s\n", version)
			return nil
		},
	}
}
