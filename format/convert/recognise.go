package convert

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// inWords completes the sentence "the keys are …".
func inWords(dialect string) string {
	if dialect == "" {
		return "those of no known LoRA dialect"
	}
	return dialect
}

// hintFor returns the next step for an adapter without a PEFT configuration.
func hintFor(dialect string) string {
	switch {
	case strings.HasPrefix(dialect, "PEFT's"):
		return "if PEFT wrote it, put the " + format.PEFTConfig + " of the same run beside it; if that is " +
			"lost, set Options.From=peft and Options.Alpha, or Options.Scale"
	case dialect == "":
		return "merge and convert read PEFT adapters and .lora files; rank.OpenExtraction extracts an adapter from a fully tuned model"
	case dialect == naming.SamLoRA:
		return "its keys do not name the modules: load it into SAM with the code of Sam_LoRA, add each " +
			"w_b·w_a to its rows of qkv there, and save the model"
	case dialect == naming.TextualInversion:
		return "nothing in it can be merged into a base; it is loaded beside one"
	}
	return hintNotRead
}

// hintBeside returns the next step for an adapter of another dialect with PEFT's configuration
// beside it.
func hintBeside(in *Input, dialect string) string {
	for _, d := range pairDialects {
		if claimsOf(in)[d.name] != "" {
			return "if the configuration belongs to another adapter, set Options.From=" + d.name
		}
	}
	return hintFor(dialect)
}

const hintNotRead = "this dialect cannot be read yet; convert the adapter to PEFT with the program that wrote it"

// refuse returns the error for an input that no dialect recognises.
func (in *Input) refuse() error {
	if in.isFolder() && in.name == "" {
		return in.folder.refuse()
	}
	if err := in.readTable(); err != nil {
		return err
	}
	dialect := naming.Dialect(in.table.keys())
	switch text, _ := in.ReadFile(format.PEFTConfig, maxSideBytes); {
	case text != nil:
		return fault.New(fault.Unsupported, "the %s beside it is not PEFT's (it has no peft_type), and the keys are %s", format.PEFTConfig, inWords(dialect)).
			In(in.Path()).WithHint(hintNotRead)
	}
	if hint := safetensors.HintForShard(filepath.ToSlash(in.Path())); hint != "" {
		return fault.New(fault.Unsupported, "this is one shard of the weights of a training run").
			In(in.Path()).WithHint("%s", hint)
	}
	return fault.New(fault.Unsupported, "there is no %s beside the weights, and their keys are %s", format.PEFTConfig, inWords(dialect)).
		In(in.Path()).WithHint("%s", hintFor(dialect))
}

// isModel reports whether the input is a file with the name of a model's weights. An adapter beside
// such a file does not make the file an adapter.
func (in *Input) isModel() bool {
	return !in.isFolder() && modelWeights.MatchString(in.name)
}

// hasAdapter reports whether there are signs of an adapter that no dialect of the set reads: a
// configuration under PEFT's name, weights with the keys of an adapter, an adapter in a
// subdirectory, or a pickle; checkpoints are never read from pickles here.
func (in *Input) hasAdapter() bool {
	f := in.folder
	switch {
	case !in.isFolder():
		return !in.isModel() && in.exists(format.PEFTConfig) || hasKeysOfAdapter(in)
	case f.exists(format.PEFTConfig):
		return true
	case f.isModel():
		return f.own.files != nil
	case len(f.named) > 0, len(f.own.files) > 1, f.own.err != nil:
		return true
	case slices.Equal(f.own.files, []string{peftWeights}), slices.Equal(f.own.files, []string{peftPickle}):
		return true
	case f.own.files != nil:
		return hasKeysOfAdapter(in)
	}
	return len(f.deeper()) > 0
}

// hasKeysOfAdapter reports whether the weights are a pickle or a zip archive, or safetensors with
// the keys of an adapter.
func hasKeysOfAdapter(in *Input) bool {
	if isPickle(in.start) {
		return true
	}
	if in.readTable(); in.table == nil {
		return false
	}
	// A name that is refused says nothing; the others still do.
	isRefused := func(key string) bool { return checkName(key) != nil }
	return naming.AreOfAdapter(slices.DeleteFunc(in.table.keys(), isRefused))
}
