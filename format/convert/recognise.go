package convert

import (
	"archive/zip"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
)

// others are the dialects that are recognised and not read yet, by a part of their keys; "^" stands
// for the start of a key and "$" for its end. The first match names the file.
var others = []struct{ part, name string }{
	{".lokr_w", "LoKr, of LyCORIS"},
	{".hada_w", "LoHa, of LyCORIS"},
	{".oft_", "OFT, of LyCORIS or kohya"},
	{".lora_down.weight$", "the dialect of kohya's sd-scripts"},
	{"_lora1.down.weight$", "the dialect of XLabs"},
	{"_lora.down.weight$", "an old dialect of diffusers"},
	{".lora.down.weight$", "an old dialect of diffusers"},
	{".lora_linear_layer.", "an old dialect of diffusers"},
	{".lora_a.weight$", "the dialect of torchtune"},
	{".lora_a$", "the dialect of MLX"},
	{".diff$", "differences of whole weights, as LyCORIS and others write them"},
	{".diff_b$", "differences of whole biases, as LyCORIS and others write them"},
	{".on_input$", "IA³, of LyCORIS"},
	{"^w_a_", "the dialect of Sam_LoRA"},
	{":up$", "the dialect of cloneofsimo's lora"},
	{".w_lora_A$", "the dialect of CLIP-LoRA"},
	{".loras.", "the dialect of AdapterHub's adapters"},
	{".lora_E", "those of AdaLoRA, which is not LoRA"},
	{"^base_model.model.", peftKeys},
	{".lora_A.weight$", "PEFT's keys, as diffusers and others write them without a configuration"},
	{".lora_A.default.weight$", peftKeys},
	{".lora_A$", "the dialect of loralib"},
	{"^emb_params$", textualInversion},
	{"^clip_l$", textualInversion},
	{"^string_to_param.", textualInversion},
	{"^<", textualInversion},
}

const (
	peftKeys         = "PEFT's"
	textualInversion = "those of a textual inversion, which adds words to a text encoder and is not LoRA"
)

// dialectOf names the dialect of a file that has no configuration of PEFT, by its keys. It returns ""
// for one that is not known here.
func dialectOf(keys []string) string {
	for _, o := range others {
		if slices.ContainsFunc(keys, func(key string) bool { return matches(key, o.part) }) {
			return o.name
		}
	}
	return ""
}

func matches(key, part string) bool {
	part, atStart := strings.CutPrefix(part, "^")
	part, atEnd := strings.CutSuffix(part, "$")
	switch {
	case atStart && atEnd:
		return key == part
	case atStart:
		return strings.HasPrefix(key, part)
	case atEnd:
		return strings.HasSuffix(key, part)
	}
	return strings.Contains(key, part)
}

// areOfAdapter reports whether keys are those of an adapter, in a dialect that is read or in another.
// A model that was saved with adapters in its layers has their keys, and its own weights as well.
func areOfAdapter(keys []string) bool {
	n := 0
	for _, key := range keys {
		if strings.HasSuffix(key, ".base_layer.weight") {
			n++ // PEFT saves that of an embedding and of a head beside their factors
		}
	}
	return n <= 2 && dialectOf(keys) != ""
}

// inWords says which dialect the keys are of, for a sentence.
func inWords(dialect string) string {
	if dialect == "" {
		return "no dialect of LoRA that is known here"
	}
	return dialect
}

// hintFor says what to do about an adapter without a configuration of PEFT.
func hintFor(dialect string) string {
	switch {
	case strings.HasPrefix(dialect, "PEFT's"):
		return "if PEFT made it, put the " + format.PEFTConfig + " that was saved with it beside it"
	case dialect == "":
		return "merge and convert read the adapters of PEFT, and .lora files; of a model that was tuned whole, rank.OpenExtraction makes one"
	case dialect == textualInversion:
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
	return fault.New(fault.Unsupported, "this is a NumPy archive (.npz), and its keys are %s", inWords(dialectOf(names))).WithHint(hintNotRead)
}

// refuse says why no dialect recognises an input.
func (in *Input) refuse() error {
	if in.isFolder() && in.name == "" {
		return in.folder.refuse()
	}
	if err := in.readTable(); err != nil {
		return err
	}
	dialect := dialectOf(in.table.keys())
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

// isModel reports whether a file was given that has the name of a model's weights. What lies beside such a file makes it no adapter.
func (in *Input) isModel() bool {
	return !in.isFolder() && modelWeights.MatchString(in.name)
}

// hasAdapter reports whether there is an adapter that no dialect of the set reads, by what lies there: a configuration under PEFT's
// name, weights under the keys of an adapter, an adapter in a sub-directory, or a pickle, which no checkpoint that is read here is.
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

// hasKeysOfAdapter reports whether the weights are a pickle or an archive, or safetensors with the keys of an adapter.
func (in *Input) hasKeysOfAdapter() bool {
	if isPickle(in.start) {
		return true
	}
	return in.readTable() == nil && (in.Metadata()[diffusersMetadata] != "" || areOfAdapter(in.table.keys()))
}
