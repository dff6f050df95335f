package main

import "regexp"

// flagOf has the flag for every option, and the command for every function, that a text of the
// library names.
var flagOf = map[string]string{
	"Adapter.Weight=NaN":             "leave --weight out",
	"Checkpoint.History":             "loratool inspect",
	"CombineOptions.Budget":          "--budget",
	"CombineOptions.DType":           "--dtype",
	"CombineOptions.Density":         "--density",
	"CombineOptions.Method":          "--method",
	"CombineOptions.Rule":            "--rank or --max-error",
	"CombineOptions.Weights":         "--weight",
	"CompareOptions.Directions":      "--directions",
	"ExtractOptions.Budget":          "--budget",
	"ExtractOptions.DType":           "--dtype",
	"ExtractOptions.Exclude":         "--exclude",
	"ExtractOptions.Include":         "--include",
	"ExtractOptions.ConvRank":        "--conv-rank",
	"ExtractOptions.MaxRank":         "--max-rank",
	"ExtractOptions.Only":            "--only-lora",
	"ExtractOptions.Strict":          "--strict",
	"LoRAOptions.Base":               "--base",
	"LoRAOptions.DType":              "--dtype",
	"LoRAOptions.Rule":               "--rank or --max-error",
	"Options.AddTensors":             "--add-tensors",
	"CreateOptions.Architecture":     "--architecture",
	"CreateOptions.Base":             "--base",
	"CreateOptions.BaseConfig":       "--base",
	"CreateOptions.DType":            "--dtype",
	"CreateOptions.FoldScale":        "--fold-scale",
	"CreateOptions.Only":             "--only",
	"Options.AcceptLoss":             "--accept-loss",
	"Options.Again":                  "--again",
	"Options.AllowNonFinite":         "--allow-nonfinite",
	"Options.Alpha":                  "--alpha",
	"Options.AnyBase":                "--any-base",
	"Options.BaseAs":                 "--base-as",
	"Options.BaseAsSkip":             "--base-as-skip",
	"Options.Dequantise":             "--dequantise",
	"Options.EnableLoRA":             "--enable-lora",
	"Options.ExpertInput":            "--expert-input",
	"Options.ExpertTurns":            "--expert-turns",
	"Options.ExpertsSlowest":         "--expert-slowest",
	"Options.From":                   "--from",
	"Options.GrowVocabulary":         "--grow-vocabulary",
	"Options.LinearInput":            "--linear-input",
	"Options.Only":                   "--only",
	"Options.OutDType":               "--out-dtype",
	"Options.OutProjTwice":           "--out-proj-twice",
	"Options.Prefix":                 "--prefix",
	"Options.RecomputeResidual":      "--recompute-residual",
	"Options.Requantise":             "--requantise",
	"Options.Scale":                  "--scale",
	"Options.Stochastic":             "--stochastic",
	"Options.Tied":                   "--tied",
	"Options.Undo":                   "--undo",
	"Options.With":                   "--with",
	"Options.Without":                "--without",
	"ReaderOptions.MaxManifestBytes": "--max-manifest",
	"Removal.Approximate":            "--approximate",
	"Removal.Records":                "--undo-file",
	"convert.Create":                 "loratool convert",
	"convert.RestoreTo":              "loratool restore",
	"merge.OpenUnmerge":              "loratool unmerge",
	"rank.ToLoRA":                    "loratool convert --as-lora",
	"rank.MaxError":                  "--max-error",
	"rank.OpenExtraction":            "loratool extract",
}

// optionWord matches an option or a function in a text of the library: its name, and where an
// option has a value, the equals sign before it. NaN is part of the word, as no flag takes it.
var optionWord = regexp.MustCompile(`(\bset )?\b((?:[A-Za-z]*Options|Removal|Adapter|Checkpoint|convert|merge|rank)\.[A-Z]\w*(?:=NaN)?)(=)?`)

// flagsFor turns the options that a text of the library names into flags: "set Options.Tied=fold"
// becomes "use --tied fold". Words without a row stay as they are.
func flagsFor(text string) string {
	return optionWord.ReplaceAllStringFunc(text, func(word string) string {
		m := optionWord.FindStringSubmatch(word)
		flag, known := flagOf[m[2]]
		if !known {
			return word
		}
		if m[1] != "" && flag[0] == '-' {
			flag = "use " + flag
		}
		if m[3] != "" {
			flag += " "
		}
		return flag
	})
}

// allFlags is flagsFor of every text. It is never nil, so that JSON has a list.
func allFlags(texts []string) []string {
	all := make([]string, len(texts))
	for i, text := range texts {
		all[i] = flagsFor(text)
	}
	return all
}
