package main

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/urfave/cli/v2"
)

// fromOption is --from, --alpha and --scale, for adapters whose files leave something open.
type fromOption struct {
	dialect, alpha, scale, enabled string

	prefixes cli.StringSlice
}

func (o *fromOption) fromFlags() []cli.Flag {
	names := strings.Join(convert.Default().Names()[1:], ", ")
	return []cli.Flag{
		&cli.StringFlag{Name: "from", Destination: &o.dialect, Usage: "read all adapters of the " +
			"command in this `DIALECT`, where their content fits several or none: " + names},
		&cli.StringFlag{Name: "alpha", Destination: &o.alpha, Usage: "lora_alpha is `A` where a " +
			"file does not say the scale; for all adapters of the command"},
		&cli.StringFlag{Name: "scale", Destination: &o.scale, Usage: "the scale is `S` where a " +
			"file does not say it; for all adapters of the command"},
		&cli.StringFlag{Name: "enable-lora", Destination: &o.enabled, Usage: "a MergedLinear of " +
			"loralib changes these projections of its weight: a `LIST` such as true,false,true"},
		&cli.StringSliceFlag{Name: "prefix", Destination: &o.prefixes, Usage: "replace FROM at the " +
			"beginning of the names of modules, as in `FROM=TO`; either may be empty; once per prefix"},
	}
}

// set adds the flags to options.
func (o *fromOption) set(options *convert.Options) (err error) {
	names := convert.Default().Names()
	if o.dialect != "" && !slices.Contains(names, o.dialect) {
		hint := "the dialects that are read are " + strings.Join(names, ", ")
		return usagef(hint, "unknown dialect %q", o.dialect)
	}
	if o.alpha != "" && o.scale != "" {
		return usagef("give one of them", "--alpha and --scale both set the scale")
	}
	options.From = o.dialect
	if options.Alpha, err = scaleNumber("alpha", o.alpha); err != nil {
		return err
	}
	if options.Scale, err = scaleNumber("scale", o.scale); err != nil {
		return err
	}
	if options.Prefix, err = parsePrefixes(o.prefixes.Value()); err != nil {
		return err
	}
	options.EnableLoRA, err = parseEnabled(o.enabled)
	return err
}

// parsePrefixes reads the values of --prefix. A dot at the end of a prefix may be there or not.
func parsePrefixes(texts []string) (all []convert.Prefix, err error) {
	for _, text := range texts {
		from, to, ok := strings.Cut(text, "=")
		if !ok {
			return nil, usagef("such as --prefix body=model.language_model", "--prefix takes FROM=TO, got %q", text)
		}
		all = append(all, convert.Prefix{From: strings.TrimSuffix(from, "."), To: strings.TrimSuffix(to, ".")})
	}
	return all, nil
}

// parseEnabled reads the value of --enable-lora, nil if it is not given.
func parseEnabled(text string) (enabled []bool, err error) {
	if text == "" {
		return nil, nil
	}
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		if word != "true" && word != "false" {
			return nil, usagef("such as --enable-lora true,false,true", "--enable-lora takes a list of true "+
				"and false, one for each projection, got %q", text)
		}
		enabled = append(enabled, word == "true")
	}
	if !slices.Contains(enabled, true) {
		return nil, usagef("such as --enable-lora true,false,true", "--enable-lora enables no projection")
	}
	return enabled, nil
}

// scaleNumber reads the value of a flag, 0 if it is not given.
func scaleNumber(flag, text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	x, ok := parseDecimal(text)
	if !ok || x == 0 {
		return 0, usagef("such as --"+flag+" 16", "--%s takes a number that is not 0, got %q",
			flag, text)
	}
	return x, nil
}
