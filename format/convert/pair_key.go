package convert

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// pairDialect is a dialect whose keys are the name of a module and an ending, in one file without a
// configuration. Such dialects share their endings and their reader (pairTails, pairReader). They
// differ in the keys that they own, in the names of modules, and in what a missing scale means.
type pairDialect struct {
	readOnly
	// owns reports whether a key of a factor is of this dialect, judged by the key alone.
	owns func(k *pairKey) bool
	// inHeader says which entry of the header speaks for the dialect, "" for none; nil if no entry
	// does.
	inHeader func(metadata map[string]string) string
	// needsScale says that a scale which the file does not say is unknown, and no rule gives it.
	needsScale bool
	// hintScale says how to find the scale that the file does not say.
	hintScale string
	// modules gives the modules of the file their names in the model; nil keeps the names.
	modules func(names []string) map[string]string
	// adapt changes a parsed key to what it means in this dialect; nil leaves all keys alone.
	adapt func(k *pairKey, name string)
	// rows is the feature that B of q and k requires, "" for none: the order of its rows.
	rows format.Feature
	// beside reads the scale from a file beside the weights. It returns nil if there is none.
	beside func(in *Input) (*besideScale, error)
	// ofLanguage says that the programs of the dialect train language models, not those of images.
	ofLanguage bool
	// fused says that a layer whose A has several times as many rows as B has columns changes
	// several projections in one weight.
	fused bool
	// writing is how the dialect is written; nil if it is only read.
	writing *pairWriting
}

// pairKey is a parsed key of a dialect whose keys are a module and an ending.
type pairKey struct {
	module  string // without PEFT's prefix; the whole key if the ending is unknown
	isPEFTs bool   // the key has PEFT's prefix
	role    format.Role
	tail    string             // the row of pairTails, "" if the ending is unknown
	kind    format.Kind        // of a layer that has the role; "" if any kind may have it
	part    string             // "weight" or "bias": the tensor is a difference to that of the base
	feature format.Requirement // of a tensor that is carried without a meaning
	method  string             // see pairTail
	saved   string             // the tensor of the base that this one replaces; "" for a part of a layer
}

// pairTail is an ending of keys. "*" stands for one segment, the adapter's name in a live model.
type pairTail struct {
	tail   string
	role   format.Role
	kind   format.Kind // of a layer that has the role; "" if any kind may have it
	part   string      // "weight" or "bias": the tensor is a difference to that of the base
	method string      // the method of LyCORIS that the tensor belongs to
}

// pairTails are the endings in all dialects: of LoRA, and of LyCORIS.
var pairTails = slices.Concat(loRATails, lyCORISTails)

var loRATails = []pairTail{
	{tail: "lora_down.weight", role: roleA}, // kohya
	{tail: "lora_up.weight", role: roleB},
	{tail: "lora_A.weight", role: roleA}, // PEFT, and diffusers since 2023
	{tail: "lora_B.weight", role: roleB},
	{tail: "lora_A.*.weight", role: roleA},
	{tail: "lora_B.*.weight", role: roleB},
	{tail: "lora_A.*.*.weight", role: roleA}, // DiffSynth: .default_0.default.
	{tail: "lora_B.*.*.weight", role: roleB},
	{tail: "lora_a.weight", role: roleA}, // torchtune
	{tail: "lora_b.weight", role: roleB},
	{tail: "lora_A", role: roleA}, // Mochi and ACE-Step
	{tail: "lora_B", role: roleB},
	{tail: "lora_B.bias", role: roleBias},
	{tail: "lora_B.*.bias", role: roleBias},
	{tail: "lora_embedding_A", role: roleEmbeddingA},
	{tail: "lora_embedding_B", role: roleEmbeddingB},
	{tail: "lora_magnitude_vector", role: roleMagnitude},
	{tail: "lora_magnitude_vector.weight", role: roleMagnitude},
	{tail: "lora_magnitude_vector.*.weight", role: roleMagnitude},
	{tail: "lora.down.weight", role: roleA}, // diffusers in 2023
	{tail: "lora.up.weight", role: roleB},
	{tail: "lora_linear_layer.down.weight", role: roleA}, // its text encoders
	{tail: "lora_linear_layer.up.weight", role: roleB},
	{tail: "alpha", role: format.RoleAlpha},
}

// pairSegments holds the segments of each row of pairTails.
var pairSegments = func() (all [][]string) {
	for _, t := range pairTails {
		all = append(all, strings.Split(t.tail, "."))
	}
	return all
}()

// wordPrefix begins the keys of embeddings that kohya and OneTrainer bundle with an adapter.
const wordPrefix = "bundle_emb."

// parsePair parses a key from its end. Two endings may fit, such as lora_A and lora_A.weight; only
// one of them leaves nothing behind.
func parsePair(name string) pairKey {
	plain, isPEFTs := strings.CutPrefix(naming.StripWrappers(name), peftPrefix)
	if strings.HasPrefix(plain, wordPrefix) {
		return pairKey{module: plain, feature: requirement(format.FeatureTextualInversion, name)}
	}
	var room [24]string // most keys of a large file cost no allocation
	parts := room[:0]
	for part := range strings.SplitSeq(plain, ".") {
		parts = append(parts, part)
	}
	if k, ok := parseXLabs(parts); ok {
		return k
	}
	if k, ok := parseProcessor(parts); ok {
		return k
	}
	if k, ok := parseMegatron(parts); ok {
		return k
	}
	for i, t := range pairTails {
		n, _ := matchTail(parts, pairSegments[i])
		if n == 0 || n == len(parts) {
			continue
		}
		k := pairKey{
			module: withoutTail(plain, parts[len(parts)-n:]), isPEFTs: isPEFTs,
			role: t.role, tail: t.tail, kind: t.kind, part: t.part, method: t.method,
		}
		switch {
		case t.role == roleMagnitude && strings.HasSuffix(k.module, ".to_out"):
			k.module += ".0" // diffusers writes it so, beside factors of to_out.0
		case t.method == set:
			k.module, k.feature = plain, requirement(format.FeatureSetTensor, name)
		case t.role == "" && t.part == "":
			k.feature = requirement(format.FeatureLyCORIS, t.method)
		}
		return k
	}
	feature := format.FeatureUnknownTensor
	if naming.Dialect([]string{plain}) == naming.TextualInversion {
		feature = format.FeatureTextualInversion
	}
	return pairKey{module: plain, feature: requirement(feature, name)}
}

// isFactor reports whether the key belongs to a factor of LoRA, in any dialect.
func (k *pairKey) isFactor() bool {
	return slices.Contains([]format.Role{roleA, roleB, roleEmbeddingA, roleEmbeddingB}, k.role)
}

// isMethod reports whether the key belongs to a method of LyCORIS.
func (k *pairKey) isMethod() bool { return k.method != "" && k.method != set }

// processorTail stands for the endings of attention processors, such as to_q_lora.down.weight.
const processorTail = "_lora"

// xLabsTail stands for the endings of XLabs' processors, such as qkv_lora1.down.weight.
const xLabsTail = "processor"

// xLabsModules are the modules of a block of Flux that XLabs' factors belong to. The missing one is
// qkv_lora, which changes some rows of linear1.
var xLabsModules = map[string]string{
	"qkv_lora1": "img_attn.qkv", "proj_lora1": "img_attn.proj",
	"qkv_lora2": "txt_attn.qkv", "proj_lora2": "txt_attn.proj",
	"proj_lora": "linear2",
}

// parseXLabs parses a key of a processor of XLabs.
func parseXLabs(parts []string) (k pairKey, ok bool) {
	n := len(parts)
	if n < 5 || parts[n-1] != "weight" || parts[n-4] != "processor" {
		return k, false
	}
	block := strings.Join(parts[:n-4], ".")
	module := xLabsModules[parts[n-3]]
	if k.role, ok = sides[parts[n-2]]; !ok {
		return k, false
	}
	switch {
	case module != "":
		k.module = block + "." + module
	case parts[n-3] == "qkv_lora":
		where := strings.Join(parts, ".") + " (a part of linear1)"
		k.module, k.role = block, ""
		k.feature = requirement(format.FeatureUnknownTensor, where)
	default:
		return k, false
	}
	k.tail = xLabsTail
	return k, true
}

// sides are the names of factors in the dialects of 2023.
var sides = map[string]format.Role{"down": roleA, "up": roleB}

// parseProcessor parses a key of diffusers' attention processors of 2023, which say the module in
// their ending: attn1.processor.to_out_lora.down.weight is attn1.to_out.0. CLIP's attention has
// other names.
func parseProcessor(parts []string) (k pairKey, ok bool) {
	n := len(parts)
	if n < 4 || parts[n-1] != "weight" {
		return k, false
	}
	name, ok := strings.CutSuffix(parts[n-3], "_lora")
	if !ok {
		return k, false
	}
	if k.role, ok = sides[parts[n-2]]; !ok {
		return k, false
	}
	path := parts[:n-3]
	if path[len(path)-1] == "processor" {
		path = path[:len(path)-1]
	}
	switch {
	case len(path) > 0 && path[len(path)-1] == "self_attn":
		name = strings.TrimPrefix(name, "to_") + "_proj"
	case name == "to_out":
		name = "to_out.0"
	}
	k.module, k.tail = strings.Join(append(slices.Clone(path), name), "."), processorTail
	return k, true
}
