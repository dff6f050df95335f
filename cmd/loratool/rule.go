package main

import (
	"fmt"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

// ruleOptions choose the ranks of layers.
type ruleOptions struct {
	rank, maxRank    int
	energy, maxError float64
	budget           string
}

// ruleFlags are the flags of the rules. of is what they truncate: "Δ" or "ΔW".
func (o *ruleOptions) ruleFlags(of string) []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "rank", Aliases: []string{"r"}, Usage: "keep `K` singular values per layer", Destination: &o.rank},
		&cli.Float64Flag{Name: "energy", Usage: "keep the fewest singular values with this `SHARE` of the energy ‖" + of + "‖², such as 0.95", Destination: &o.energy},
		&cli.Float64Flag{Name: "max-error", Usage: "keep the fewest singular values with an error of at most `E`·‖" + of + "‖, such as 0.1", Destination: &o.maxError},
		&cli.StringFlag{Name: "budget", Usage: "spend `SIZE` bytes of factors, such as 40MB, on the singular values that bring most energy per byte; headers and configuration come on top", Destination: &o.budget},
		&cli.IntFlag{Name: "max-rank", Usage: "with another rule: at most `K` per layer", Destination: &o.maxRank},
	}
}

// check checks that the flags name at most one rule, or one, with a number that makes sense. more
// are the names of flags for further rules of the command.
func (o *ruleOptions) check(c *cli.Context, isNeeded bool, more ...string) error {
	var examples []string
	rules := 0
	for _, name := range append([]string{"rank 8", "energy 0.95", "max-error 0.1"}, append(more, "budget 40MB")...) {
		examples = append(examples, "--"+name)
		if flag, _, _ := strings.Cut(name, " "); c.IsSet(flag) {
			rules++
		}
	}
	hint := "one of " + strings.Join(examples, ", ")
	switch {
	case rules > 1 || rules == 0 && isNeeded:
		return usagef(hint, "%s needs one rule for the rank, got %d", c.Command.Name, rules)
	case c.IsSet("rank") && o.rank < 1:
		return usagef(hint, "a rank is at least 1, got %d", o.rank)
	case c.IsSet("energy") && !(o.energy > 0 && o.energy <= 1):
		return usagef(hint, "a share of the energy lies above 0 and up to 1, got %v", o.energy)
	case c.IsSet("max-error") && !(o.maxError > 0 && o.maxError < 1):
		return usagef(hint, "a relative error lies between 0 and 1, got %v", o.maxError)
	case o.maxRank < 0 || c.IsSet("max-rank") && (o.maxRank == 0 || c.IsSet("rank") || rules == 0):
		return usagef(hint, "--max-rank is a positive bound for another rule than --rank")
	}
	return nil
}

// rule returns the rule, or the budget in bytes; nil and 0 without any.
func (o *ruleOptions) rule(c *cli.Context) (rule rank.Rule, budget int64, err error) {
	switch {
	case c.IsSet("rank"):
		rule = rank.FixedRank{K: o.rank}
	case c.IsSet("energy"):
		rule = rank.EnergyShare{Share: o.energy, Max: o.maxRank}
	case c.IsSet("max-error"):
		rule = rank.MaxError(o.maxError, o.maxRank)
	case c.IsSet("budget"):
		budget, err = parseBytes(o.budget)
	}
	return rule, budget, err
}

// factorDType parses the dtype of factors, one of those given.
func factorDType(text string, allowed ...dtype.Type) (dtype.Type, error) {
	var names []string
	for _, d := range allowed {
		if d.String() == strings.ToUpper(text) {
			return d, nil
		}
		names = append(names, strings.ToLower(d.String()))
	}
	last := len(names) - 1
	return 0, usagef(fmt.Sprintf("--dtype %s or %s", strings.Join(names[:last], ", "), names[last]), "unknown dtype %q for the factors", text)
}
