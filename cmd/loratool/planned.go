package main

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// planOptions are the flags that decide about the output of a merge, for merge and for the commands
// that plan a merge and compare with it.
type planOptions struct {
	readingOptions
	baseAsOptions
	again, anyBase, allowNonFinite bool
	growVocabulary, addTensors     bool
	tied                           string
	outDType                       string
	dequantise                     bool
}

// baseAsOptions are the flags for the values that a merge takes as those of the base.
type baseAsOptions struct{ baseAs, baseAsSkip string }

func (o *planOptions) planFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "again", Usage: "merge an adapter that BASE has been merged with already", Destination: &o.again},
		&cli.BoolFlag{Name: "any-base", Usage: "merge even if an adapter was made for another base", Destination: &o.anyBase},
		&cli.BoolFlag{Name: "allow-nonfinite", Usage: "allow NaN and infinity in an adapter, and weights that become infinite", Destination: &o.allowNonFinite},
		&cli.StringFlag{Name: "tied", Usage: "if an adapter changes only the embedding or only the head of a tied pair: `untie|fold`, that is, make the head a tensor of its own, or change both", Destination: &o.tied, Action: checkTied},
		&cli.BoolFlag{Name: "grow-vocabulary", Usage: "add rows to embedding and head if an adapter has more, and update config.json", Destination: &o.growVocabulary},
		&cli.BoolFlag{Name: "add-tensors", Usage: "add tensors, such as a classifier, that an adapter saves whole and BASE lacks or has in another shape; update config.json", Destination: &o.addTensors},
		&cli.StringFlag{Name: "out-dtype", Usage: "of the quantised weights of BASE that the merge decodes: `bf16|f16|f32` (default: f16 where they were f16, else bf16)", Destination: &o.outDType, Action: checkOutDType},
		&cli.BoolFlag{Name: "dequantise", Usage: "decode every quantised weight of BASE, not only those that an adapter changes", Destination: &o.dequantise},
		&cli.StringFlag{Name: "base-as", Usage: "merge into BASE as QLoRA's training saw it: `nf4` gives all linear weights except heads the values that they have in NF4 of bitsandbytes without double quantisation", Destination: &o.baseAs},
		&cli.StringFlag{Name: "base-as-skip", Usage: "with --base-as: `NAMES` of modules that stay as they are, separated by commas, as llm_int8_skip_modules of the training had them; heads are quantised unless named (default: those of a config.json in the adapter's folder, else the heads)", Destination: &o.baseAsSkip},
	}, o.readingFlags()...)
}

// set adds the flags to options.
func (o *planOptions) set(options *merge.Options) {
	o.readingOptions.set(options)
	options.Again, options.AnyBase, options.AllowNonFinite = o.again, o.anyBase, o.allowNonFinite
	options.GrowVocabulary, options.AddTensors, options.Tied = o.growVocabulary, o.addTensors, merge.Tied(o.tied)
	options.OutDType, options.Dequantise = outDTypes[o.outDType], o.dequantise
	o.setBaseAs(options)
}

// setBaseAs adds the flags to options.
func (o *baseAsOptions) setBaseAs(options *merge.Options) {
	if options.BaseAs = o.baseAs; o.baseAsSkip != "" {
		options.BaseAsSkip = strings.Split(o.baseAsSkip, ",")
	}
}

// check refuses values and combinations of the flags, whatever the files are. record is the path of
// the undo record, "" for none.
func (o *planOptions) check(record string) error {
	options := merge.Options{UndoFile: record}
	o.set(&options)
	return checkOptions(options)
}

// checkOptions is the error of wrong flags behind options, if there is one.
func checkOptions(options merge.Options) error {
	if err := options.Check(); err != nil {
		return usagef(fault.Hint(err), "%v", err)
	}
	return nil
}

// readLoading takes the modules that --base-as leaves as they are from a config.json beside an
// adapter, unless --base-as-skip says them.
func (o *baseAsOptions) readLoading(adapters []string) (warnings []string, err error) {
	if o.baseAs == "" {
		return nil, nil
	}
	given := o.baseAsSkip != ""
	for _, path := range adapters {
		file, _ := convert.SplitMember(path)
		l, err := checkpoint.LoadedIn4Bit(file)
		if err != nil || l == nil {
			return warnings, err
		}
		if l.IsDouble {
			warnings = append(warnings, path+": its config.json says that training used double quantisation, which --base-as nf4 leaves out")
		}
		if skip := strings.Join(l.Skip, ","); !given && skip != o.baseAsSkip {
			if o.baseAsSkip != "" {
				return nil, usagef("loratool merge BASE ADAPTER -o OUT --base-as nf4 --base-as-skip "+skip, "the adapters' config.json files say that training left %s and %s as they were", o.baseAsSkip, skip)
			}
			o.baseAsSkip = skip
			warnings = append(warnings, path+": its config.json says that training left these modules as they were, and so does the merge: "+strings.Join(l.Skip, ", "))
		}
	}
	return warnings, nil
}

// outDTypes lists the values of --out-dtype.
var outDTypes = map[string]dtype.Type{"bf16": dtype.BF16, "f16": dtype.F16, "f32": dtype.F32}

func checkOutDType(_ *cli.Context, name string) error {
	if outDTypes[name] == dtype.Invalid {
		return usagef("--out-dtype bf16, --out-dtype f16, or --out-dtype f32", "got --out-dtype %q", name)
	}
	return nil
}

// given is the first flag on the command line that only a merge understands, "" if there is none.
func (o *planOptions) given(c *cli.Context) string {
	isForOpening := func(name string) bool {
		return slices.ContainsFunc(new(withoutOption).openFlags(), func(f cli.Flag) bool { return f.Names()[0] == name })
	}
	for _, f := range new(planOptions).planFlags() {
		if name := f.Names()[0]; c.IsSet(name) && !isForOpening(name) {
			return "--" + name
		}
	}
	return ""
}

func checkTied(_ *cli.Context, tied string) error {
	if t := merge.Tied(tied); t != merge.Untie && t != merge.Fold {
		return usagef("--tied untie, or --tied fold", "got --tied %q", tied)
	}
	return nil
}

// withFlags lists the flags of a merge, after a space, "" if there are none.
func withFlags(flags []string) string {
	if len(flags) == 0 {
		return ""
	}
	return " with " + strings.Join(flags, " ")
}
