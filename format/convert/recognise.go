package convert

import (
	"archive/zip"
	"io"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// inWords says which dialect the keys are of, for a sentence.
func inWords(dialect string) string {
	if dialect == "" {
		return "no dialect of LoRA that is known here"
	}
	return dialect
}

// hintFor is the way out for an adapter without a configuration of PEFT.
func hintFor(dialect string) string {
	switch {
	case strings.HasPrefix(dialect, "PEFT's"):
		return "if PEFT made it, put the " + format.PEFTConfig + " that was saved with it beside it"
	case dialect == "":
		return "merge and convert read the adapters of PEFT, and .lora files; of a model that was tuned whole, rank.OpenExtraction makes one"
	case dialect == naming.TextualInversion:
		return "there is nothing to merge into a base: it is loaded beside one"
	}
	return hintNotRead
}

const hintNotRead = "this dialect is not read yet; convert the adapter to PEFT's with the tool that made it"

// diffusersMetadata is the entry of a header in which diffusers keeps the configuration of PEFT.
const diffusersMetadata = "lora_adapter_metadata"

// arraysOf are the names of the arrays of a NumPy archive, nil for any other file.
func arraysOf(r io.ReaderAt, size int64) []string {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range z.File {
		if name, ok := strings.CutSuffix(e.Name, ".npy"); ok {
			names = append(names, name)
		}
	}
	return names
}

// refuseArrays is the error for a NumPy archive.
func refuseArrays(names []string) error {
	return fault.New(fault.Unsupported, "this is a NumPy archive (.npz), and its keys are %s", inWords(naming.Dialect(names))).WithHint(hintNotRead)
}

// refuse says why no dialect recognises an input.
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
	case in.Metadata()[diffusersMetadata] != "":
		return fault.New(fault.Unsupported, "this is an adapter of diffusers, with its configuration in the header (%s)", diffusersMetadata).
			In(in.Path()).WithHint(hintNotRead)
	}
	if hint := safetensors.HintForShard(filepath.ToSlash(in.Path())); hint != "" {
		return fault.New(fault.Unsupported, "this is one shard of the weights of a training run").
			In(in.Path()).WithHint("%s", hint)
	}
	return fault.New(fault.Unsupported, "there is no %s beside the weights, and their keys are %s", format.PEFTConfig, inWords(dialect)).
		In(in.Path()).WithHint("%s", hintFor(dialect))
}

// isModel reports whether a file was given that has the name of a model's weights. What lies beside
// such a file makes it no adapter.
func (in *Input) isModel() bool {
	return !in.isFolder() && modelWeights.MatchString(in.name)
}

// hasAdapter reports whether there is an adapter that no dialect of the set reads, by what lies
// there: a configuration under PEFT's name, weights under the keys of an adapter, an adapter in a
// sub-directory, or a pickle, which no checkpoint that is read here is.
func (in *Input) hasAdapter() bool {
	f := in.folder
	switch {
	case !in.isFolder():
		return !in.isModel() && in.exists(format.PEFTConfig) || in.hasKeysOfAdapter()
	case f.exists(format.PEFTConfig):
		return true
	case f.isModel():
		return f.weights != ""
	case len(f.named) > 0 || len(f.shards()) > 0:
		return true
	case f.weights == peftWeights, f.weights == peftPickle:
		return true
	case f.weights != "":
		return in.hasKeysOfAdapter()
	}
	return len(f.deeper()) > 0
}

// hasKeysOfAdapter reports whether the weights are a pickle or an archive, or safetensors with the
// keys of an adapter.
func (in *Input) hasKeysOfAdapter() bool {
	if isPickle(in.start) {
		return true
	}
	return in.readTable() == nil && (in.Metadata()[diffusersMetadata] != "" || naming.AreOfAdapter(in.table.keys()))
}
