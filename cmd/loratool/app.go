package main

import (
	"io"

	"github.com/urfave/cli/v2"
)

func newApp(t *terminal) *app {
	usage := func(command string) cli.OnUsageErrorFunc {
		return func(_ *cli.Context, err error, _ bool) error { return usagef(helpHint(command), "%v", err) }
	}
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
		OnUsageError:              usage(""),
		DisableSliceFlagSeparator: true,
		CustomAppHelpTemplate:     cli.AppHelpTemplate + "\n" + exitCodesHelp,
		Commands: []*cli.Command{
			mergeCommand(t), unmergeCommand(t), swapCommand(t), extractCommand(t), inspectCommand(t), convertCommand(t), verifyCommand(t), dumpCommand(t), cleanCommand(t), versionCommand(t),
		},
		Action: func(c *cli.Context) error {
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range a.cli.Commands {
		c.OnUsageError = usage(c.Name) // not inherited
		c.HideHelpCommand = true
		c.CustomHelpTemplate = cli.CommandHelpTemplate + "\n" + exitCodesHelp
		if c.Name == "inspect" {
			c.CustomHelpTemplate = cli.CommandHelpTemplate + "\n" + supportHelp() + "\n" + exitCodesHelp
		}
	}
	return a
}
