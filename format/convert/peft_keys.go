package convert

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// peftRole is the role that a key gives its tensor: one that a layer keeps, or one of those below.
type peftRole = format.Role

const (
	rolePlain      peftRole = "plain"   // a parameter of the base that is replaced
	roleUnknown    peftRole = "unknown" // a key with a word of PEFT in it that has no meaning here
	roleTokens     peftRole = "tokens"
	roleState      peftRole = "state" // of a method's training, which merging leaves out
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
	adapter string // the adapter's name, where the key of a raw state dict still has it
}

// peftTails is the grammar of a key after the module path. "*" is the adapter's name, which
// save_pretrained leaves out and raw state dicts have.
var peftTails = []struct {
	tail string
	role peftRole
}{
	{"lora_A.weight", roleA},
	{"lora_A.*.weight", roleA},
	{"lora_A.*.*.weight", roleA}, // the adapter's name twice, as whoever loads its own raw state dict writes it
	{"lora_B.weight", roleB},
	{"lora_B.*.weight", roleB},
	{"lora_B.*.*.weight", roleB},
	{"lora_B.bias", roleBias},
	{"lora_B.*.bias", roleBias},
	{"lora_embedding_A", roleEmbeddingA},
	{"lora_embedding_A.*", roleEmbeddingA},
	{"lora_embedding_B", roleEmbeddingB},
	{"lora_embedding_B.*", roleEmbeddingB},
	{"lora_magnitude_vector", roleMagnitude},
	{"lora_magnitude_vector.weight", roleMagnitude},
	{"lora_magnitude_vector.*", roleMagnitude},
	{"lora_magnitude_vector.*.weight", roleMagnitude},
	{"lora_diag", roleDiag},
	{"lora_diag.*", roleDiag},
	{"token_adapter.trainable_tokens_delta", roleTokens},
	{"token_adapter.trainable_tokens_delta.*", roleTokens},
}

// tailSegments are the segments of each of peftTails.
var tailSegments = func() (all [][]string) {
	for _, g := range peftTails {
		all = append(all, strings.Split(g.tail, "."))
	}
	return all
}()

// states are the segments under which methods keep the state of their training: VeLoRA the
// projection of activations, MonteCLoRA the sampler of perturbations. PEFT merges such adapters as
// ordinary ones.
var states = map[string]format.Feature{"lora_velora_embed": format.FeatureVeLoRA, "lora_monteclora_sampler": format.FeatureMonteCLoRA}

// stateOf is the feature that a key with the role state belongs to.
func stateOf(key string) format.Feature {
	for _, part := range strings.Split(key, ".") {
		if f := states[part]; f != "" {
			return f
		}
	}
	return ""
}

// peftPrefix is the prefix that PeftModel puts before every module path of the model that it wraps.
const peftPrefix = "base_model.model."

// parsePEFTKey takes a key apart, from its end: a module of the base may have any name, the words
// of PEFT included. Since a file may hold very many keys, it allocates nothing for most: the module
// is a part of the key.
func parsePEFTKey(key string) peftKey {
	plain := strings.TrimPrefix(naming.StripWrappers(key), peftPrefix)
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

// withoutTail is a path without its last segments.
func withoutTail(path string, tail []string) string {
	n := len(path)
	for _, part := range tail {
		n -= len(".") + len(part)
	}
	return path[:n]
}

// parsePlainKey is parsePEFTKey for a key without the tail of a factor.
func parsePlainKey(plain string, parts []string) peftKey {
	if i := slices.IndexFunc(parts, func(s string) bool { return states[s] != "" }); i > 0 {
		return peftKey{module: plain, role: roleState}
	}
	// A replaced parameter of a module that is wrapped: by a LoRA layer, or by modules_to_save in a
	// raw state dict.
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

// isPEFTKey reports whether a key has a word of PEFT's LoRA in its place.
func isPEFTKey(key string) bool {
	switch parsePEFTKey(key).role {
	case rolePlain, roleUnknown:
		return strings.HasPrefix(naming.StripWrappers(key), peftPrefix)
	}
	return true
}

// matchTail compares the end of a path with a pattern, and returns how many segments the pattern
// has and what stands for its "*". An adapter's name is no word of the grammar.
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
