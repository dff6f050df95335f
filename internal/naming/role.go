package naming

import (
	"regexp"
	"strings"
)

// The roles of tensors in a model.
const (
	RoleEmbeddings = "embeddings"
	RoleAttention  = "attention"
	RoleMLP        = "mlp"
	RoleNorms      = "norms"
	RoleHead       = "head"
	RoleOther      = "other"
)

// Roles lists the roles in the order in which data pass through a model.
var Roles = []string{RoleEmbeddings, RoleAttention, RoleMLP, RoleNorms, RoleHead, RoleOther}

var (
	normLeaf    = regexp.MustCompile(`norm|^ln(_|\d|$)|_ln$`)
	mlpSegment  = regexp.MustCompile(`mlp|^(ff|ffn|feed_?forward|fc\d?|densereludense|intermediate|experts|shared_experts?)$|moe$|^ffn_`)
	bertsOutput = regexp.MustCompile(`\.layer\.\d+\.output\.`) // the second matrix of BERT's MLP
)

// RoleOf returns the role of a tensor by its name: a guess from the words that models use, for a
// summary.
func RoleOf(name string) string {
	module := Module(name)
	segments := strings.Split(strings.ToLower(module), ".")
	has := func(is func(segment string) bool) bool {
		for _, s := range segments {
			if is(s) {
				return true
			}
		}
		return false
	}
	contains := func(word string) func(string) bool {
		return func(segment string) bool { return strings.Contains(segment, word) }
	}
	switch {
	case normLeaf.MatchString(segments[len(segments)-1]):
		return RoleNorms
	case IsHead(module), module == "output": // the latter is Meta's name
		return RoleHead
	case has(contains("attn")), has(contains("attention")):
		return RoleAttention
	case has(mlpSegment.MatchString), bertsOutput.MatchString(name):
		return RoleMLP
	case IsEmbedding(module), IsInputEmbedding(module), has(contains("embed")), module == "token_embd":
		return RoleEmbeddings
	}
	return RoleOther
}
