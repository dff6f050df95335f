package convert

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// peftRole is the role that a key gives its tensor: a role of a layer, or one of those below.
type peftRole = format.Role

const (
	rolePlain      peftRole = "plain"   // a parameter that replaces one of the base
	roleUnknown    peftRole = "unknown" // a key with a word of PEFT that has no known meaning
	roleTokens     peftRole = "tokens"
	roleState      peftRole = "state" // of a method's training; merging leaves it out
	roleA          peftRole = format.RoleA
	roleB          peftRole = format.RoleB
	roleBias       peftRole = format.RoleBias
	roleMagnitude  peftRole = format.RoleMagnitude
	roleDiag       peftRole = "diag"
	roleEmbeddingA peftRole = "embedding_A"
	roleEmbeddingB peftRole = "embedding_B"
)

// peftKey is a parsed key.
type peftKey struct {
	module  string // path of the module; for rolePlain the name of the parameter
	role    peftRole
	adapter string // the adapter's name, if the key of a raw state dict contains it

	isBare    bool // the key lacks PEFT's prefix
	isWrapped bool // the key has segments of wrappers, see naming.StripWrappers
}

// peftTails is the grammar of a key after the module path. "*" stands for the adapter's name; raw
// state dicts contain it, save_pretrained removes it.
var peftTails = []struct {
	tail string
	role peftRole
}{
	{"lora_A.weight", roleA},
	{"lora_A.*.weight", roleA},
	{"lora_A.*.*.weight", roleA}, // the adapter's name twice, from saving a raw state dict that was loaded before
	{"lora_B.weight", roleB},
	{"lora_B.*.weight", roleB},
	{"lora_B.*.*.weight", roleB},
	{"lora_B.bias", roleBias},
	{"lora_B.*.bias", roleBias},
	{"lora_embedding_A", roleEmbeddingA}, // a Parameter, hence without .weight
	{"lora_embedding_A.*", roleEmbeddingA},
	{"lora_embedding_B", roleEmbeddingB},
	{"lora_embedding_B.*", roleEmbeddingB},
	{"lora_magnitude_vector", roleMagnitude},
	{"lora_magnitude_vector.weight", roleMagnitude},
	{"lora_magnitude_vector.*", roleMagnitude},        // in memory up to PEFT 0.11
	{"lora_magnitude_vector.*.weight", roleMagnitude}, // and since 0.12
	{"lora_diag", roleDiag},
	{"lora_diag.*", roleDiag},
	{"token_adapter.trainable_tokens_delta", roleTokens}, // whole rows, despite the name
	{"token_adapter.trainable_tokens_delta.*", roleTokens},
}

// tailSegments holds the segments of each entry of peftTails.
var tailSegments = func() (all [][]string) {
	for _, g := range peftTails {
		all = append(all, strings.Split(g.tail, "."))
	}
	return all
}()

// states maps the segments under which methods keep the state of their training. VeLoRA keeps the
// projection of activations, MonteCLoRA the sampler of perturbations. PEFT merges such adapters as
// ordinary ones.
var states = map[string]format.Feature{"lora_velora_embed": format.FeatureVeLoRA, "lora_monteclora_sampler": format.FeatureMonteCLoRA}

// stateOf returns the feature that a key with roleState belongs to.
func stateOf(key string) format.Feature {
	for _, part := range strings.Split(key, ".") {
		if f := states[part]; f != "" {
			return f
		}
	}
	return ""
}

// peftPrefix is the prefix that PeftModel puts before every module path of the model it wraps.
// transformers and diffusers save their adapters without it.
const peftPrefix = "base_model.model."

// parsePEFTKey parses a key from its end, because a module of the base may have any name, even with
// the words of PEFT. A file can hold very many keys, so most keys cost no allocation: the module is
// a substring of the key.
func parsePEFTKey(key string) peftKey {
	stripped := naming.StripWrappers(key)
	plain, isPEFTs := strings.CutPrefix(stripped, peftPrefix)
	parsed := parseTail(plain)
	parsed.isBare, parsed.isWrapped = !isPEFTs, len(stripped) < len(key)
	return parsed
}

// parseTail parses a key without wrappers and PEFT's prefix.
func parseTail(plain string) peftKey {
	var room [24]string
	parts := room[:0]
	for part := range strings.SplitSeq(plain, ".") {
		parts = append(parts, part)
	}
	for i, g := range peftTails {
		if n, adapter := matchTail(parts, tailSegments[i]); n > 0 && n < len(parts) {
			return peftKey{module: withoutTail(plain, parts[len(parts)-n:]), role: g.role, adapter: adapter}
		}
	}
	return parsePlainKey(plain, parts)
}

// withoutTail returns a path without its last segments.
func withoutTail(path string, tail []string) string {
	n := len(path)
	for _, part := range tail {
		n -= len(".") + len(part)
	}
	return path[:n]
}

// parsePlainKey parses a key that does not end like a factor.
func parsePlainKey(plain string, parts []string) peftKey {
	if i := slices.IndexFunc(parts, func(s string) bool { return states[s] != "" }); i > 0 {
		return peftKey{module: plain, role: roleState}
	}
	// A replaced parameter of a wrapped module: LoRA layers wrap modules, and so does
	// modules_to_save in a raw state dict.
	n := len(parts)
	if n >= 4 && parts[n-2] == "base_layer" && parts[n-3] == "token_adapter" {
		return peftKey{module: strings.Join(slices.Delete(parts, n-3, n-1), "."), role: rolePlain}
	}
	if n >= 3 && parts[n-2] == "base_layer" {
		return peftKey{module: strings.Join(slices.Delete(parts, n-2, n-1), "."), role: rolePlain}
	}
	if i := slices.Index(parts, "modules_to_save"); i > 0 && i+2 < n {
		adapter := parts[i+1]
		return peftKey{module: strings.Join(slices.Delete(parts, i, i+2), "."), role: rolePlain, adapter: adapter}
	}
	for _, part := range parts {
		if strings.HasPrefix(part, "lora_") || part == "token_adapter" || part == "original_module" || part == "base_layer" {
			return peftKey{module: plain, role: roleUnknown}
		}
	}
	return peftKey{module: plain, role: rolePlain}
}

// copies finds the tensors that PEFT writes and does not load. With save_embedding_layers, which
// new tokens turn on, save_pretrained writes all tensors below the embedding and the head. If
// modules_to_save trains such a module, M.weight is the trained tensor, as without the option, and
// M.modules_to_save.weight is the same again; M.original_module.weight is the base's
// (get_peft_model_state_dict, PEFT 0.21.2). Loading renames M.weight, and knows no other key.
type copies struct {
	among []format.Tensor
	names map[string]bool // of all tensors; nil until a key may be of a copy
}

// has reports whether the tensor of a key is a copy of another one, or the base's.
func (c *copies) has(key string) bool {
	for _, segment := range []string{".modules_to_save.", ".original_module."} {
		module, parameter, ok := strings.Cut(key, segment)
		if !ok || strings.Contains(parameter, ".") {
			continue
		}
		if c.names == nil {
			c.names = make(map[string]bool, len(c.among))
			for i := range c.among {
				c.names[c.among[i].Name] = true
			}
		}
		if c.names[module+"."+parameter] {
			return true
		}
	}
	return false
}

// isPEFTKey reports whether a key contains a word of PEFT's LoRA where PEFT puts it.
func isPEFTKey(key string) bool {
	parsed := parsePEFTKey(key)
	return parsed.role != rolePlain && parsed.role != roleUnknown || !parsed.isBare
}

// matchTail compares the end of a path with a pattern. It returns the number of segments in the
// pattern, and the segments that "*" stands for. The adapter's name cannot be weight or bias.
func matchTail(parts, pattern []string) (n int, adapter string) {
	if len(parts) < len(pattern) {
		return 0, ""
	}
	end := parts[len(parts)-len(pattern):]
	for i, want := range pattern {
		switch {
		case want == "*":
			if end[i] == "weight" || end[i] == "bias" {
				return 0, ""
			}
			adapter = strings.TrimPrefix(adapter+"."+end[i], ".")
		case end[i] != want:
			return 0, ""
		}
	}
	return len(pattern), adapter
}
