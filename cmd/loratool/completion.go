package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/urfave/cli/v2"
)

// choices lists the values of flags that accept only a few words.
var choices = map[string][]string{
	"--to": convert.Default().Written().Names(), "--dtype": {"f32", "bf16", "f16"}, "--tied": {"untie", "fold"},
	"--from": convert.Default().Names()[1:], "--expert-input": {"1", "2"}, "--linear-input": {"1", "2"},
}

// shells lists the supported shells.
var shells = []string{"bash", "zsh", "fish", "powershell"}

// script returns the completion script for a shell, "" for an unknown shell.
func (a *app) script(shell string) string {
	switch shell {
	case "bash":
		return a.bash()
	case "zsh":
		return a.zsh()
	case "fish":
		return a.fish()
	case "powershell":
		return a.powershell()
	}
	return ""
}

func completionCommand(a *app) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the script that makes a shell complete commands and flags",
		ArgsUsage: strings.Join(shells, "|"),
		Description: "Load the output when your shell starts. In ~/.bashrc: source <(loratool completion bash); " +
			"in ~/.zshrc, after compinit: source <(loratool completion zsh); for fish: loratool completion fish > " +
			"~/.config/fish/completions/loratool.fish; in $PROFILE of PowerShell: loratool completion powershell | Out-String | Invoke-Expression",
		Action: func(c *cli.Context) error {
			script := a.script(c.Args().First())
			if c.NArg() != 1 || script == "" {
				return usagef("loratool completion bash", "completion takes the name of a shell: %s", strings.Join(shells, ", "))
			}
			_, err := a.term.out.Write([]byte(script))
			return err
		},
	}
}

// words returns the words that may follow a command: its flags and, for two commands, arguments.
func (a *app) words(c *cli.Command) []string {
	words := flagNames(c)
	switch c.Name {
	case "help":
		words = append(append(words, a.commandNames()...), "support")
	case "completion":
		words = append(words, shells...)
	}
	return words
}

// bash returns a script that completes commands, then flags, the values of flags, and files.
func (a *app) bash() string {
	var b strings.Builder
	b.WriteString("# completion of loratool for bash\n_loratool() {\n" +
		"  local word=\"${COMP_WORDS[COMP_CWORD]}\" previous=\"${COMP_WORDS[COMP_CWORD-1]}\" words=\"\"\n" +
		"  COMPREPLY=()\n  case \"$previous\" in\n")
	for _, flag := range slices.Sorted(maps.Keys(choices)) {
		fmt.Fprintf(&b, "    %s) COMPREPLY=($(compgen -W \"%s\" -- \"$word\")); return ;;\n", flag, strings.Join(choices[flag], " "))
	}
	fmt.Fprintf(&b, "  esac\n  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    COMPREPLY=($(compgen -W \"%s\" -- \"$word\")); return\n  fi\n", strings.Join(a.commandNames(), " "))
	b.WriteString("  case \"${COMP_WORDS[1]}\" in\n")
	for _, c := range a.cli.Commands {
		fmt.Fprintf(&b, "    %s) words=\"%s\" ;;\n", c.Name, strings.Join(a.words(c), " "))
	}
	b.WriteString("  esac\n  case \"$word\" in\n    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$word\")) ;;\n" +
		"    *) case \"${COMP_WORDS[1]}\" in\n         help|completion) COMPREPLY=($(compgen -W \"$words\" -- \"$word\")) ;;\n" +
		"         *) COMPREPLY=($(compgen -f -- \"$word\")) ;;\n       esac ;;\n  esac\n}\n" +
		"complete -o filenames -F _loratool loratool\n")
	return b.String()
}

// zsh returns the script for bash, which zsh can run.
func (a *app) zsh() string {
	return "# completion of loratool for zsh\nautoload -U +X bashcompinit && bashcompinit\n" + a.bash()
}

// fish returns a line for every command and every flag.
func (a *app) fish() string {
	var b strings.Builder
	b.WriteString("# completion of loratool for fish\n")
	for _, c := range a.cli.Commands {
		fmt.Fprintf(&b, "complete -c loratool -n __fish_use_subcommand -f -a %s -d %s\n", c.Name, quoteFish(c.Usage))
		for _, f := range shownFlags(c) {
			line := fmt.Sprintf("complete -c loratool -n '__fish_seen_subcommand_from %s'", c.Name)
			for _, name := range f.Names() {
				if len(name) == 1 {
					line += " -s " + name
				} else {
					line += " -l " + name
				}
			}
			if words := choices["--"+f.Names()[0]]; words != nil {
				line += " -x -a " + quoteFish(strings.Join(words, " "))
			}
			_, usage := flagHelp(f)
			fmt.Fprintf(&b, "%s -d %s\n", line, quoteFish(usage))
		}
	}
	return b.String()
}

func quoteFish(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// powershell returns a script that completes commands, flags and their values. PowerShell itself
// completes files where nothing matches.
func (a *app) powershell() string {
	var b strings.Builder
	b.WriteString("# completion of loratool for PowerShell\nRegister-ArgumentCompleter -Native -CommandName loratool -ScriptBlock {\n" +
		"  param($word, $ast, $position)\n  $line = @($ast.CommandElements | ForEach-Object { $_.ToString() })\n  $words = @{\n")
	for _, c := range a.cli.Commands {
		fmt.Fprintf(&b, "    '%s' = @('%s')\n", c.Name, strings.Join(a.words(c), "', '"))
	}
	b.WriteString("  }\n  $values = @{\n")
	for _, flag := range slices.Sorted(maps.Keys(choices)) {
		fmt.Fprintf(&b, "    '%s' = @('%s')\n", flag, strings.Join(choices[flag], "', '"))
	}
	fmt.Fprintf(&b, "  }\n  $known = @('%s')\n", strings.Join(a.commandNames(), "', '"))
	b.WriteString("  if ($line.Count -gt 1 -and $words.ContainsKey($line[1])) { $known = $words[$line[1]] }\n" +
		"  $before = $line[-1]\n  if ($word) { $before = $line[-2] }\n" +
		"  if ($before -and $values.ContainsKey($before)) { $known = $values[$before] }\n" +
		"  $known | Where-Object { $_ -like \"$word*\" } | ForEach-Object { [System.Management.Automation.CompletionResult]::new($_) }\n}\n")
	return b.String()
}
