package naming

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A mixture of experts is stored in one of two ways: a module per expert, as transformers 4 has
// them in memory and most checkpoints on disk, or the weights of all experts stacked in one
// parameter (E, d1, d2), as transformers 5 has them in memory.

// expertParts are the weights of one expert that make up a stacked parameter, in each naming style.
// The parameter stacks their rows in this order.
var expertParts = map[string][][]string{
	"gate_up_proj": {{"w1", "w3"}, {"gate_proj", "up_proj"}},
	"down_proj":    {{"w2"}, {"down_proj"}},
}

var (
	// transposedExperts are the model types whose experts are (E, in, out) in memory and on disk:
	// transformers marks them is_transposed.
	transposedExperts = set("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
	// loadedTransposed are the model types whose experts transformers 5 transposes on loading.
	loadedTransposed = set("qwen3_vl_moe")
	// interleavedExperts are the model types that interleave the rows of gate and up in
	// gate_up_proj.
	interleavedExperts = set("gpt_oss", "openai_privacy_filter")
	// registration lists the parameters of stacked experts in the order in which models register
	// them.
	registration = []string{"gate_up_proj", "w1", "w3", "w2", "up_proj", "gate_proj", "down_proj"}
)

// IsExperts reports whether modules of this path stack the weights of several experts.
func IsExperts(module string) bool { return Leaf(module) == "experts" }

// HasTransposedExperts reports whether models of this type store an expert's weight transposed,
// n×m.
func HasTransposedExperts(modelType string) bool { return transposedExperts[modelType] }

// LoadsExpertsTransposed reports whether transformers 5 transposes the experts of this model type
// on loading.
func LoadsExpertsTransposed(modelType string) bool { return loadedTransposed[modelType] }

// HasInterleavedExperts reports whether models of this type interleave the rows of gate and up in
// gate_up_proj.
func HasInterleavedExperts(modelType string) bool { return interleavedExperts[modelType] }

// RegistrationOrder sorts the parameters of a module in the order in which the model registers
// them. Unknown names keep their order, at the end.
func RegistrationOrder(names []string) []string {
	order := slices.Clone(names)
	slices.SortStableFunc(order, func(a, b string) int { return position(a) - position(b) })
	return order
}

// IsRegistered reports whether the registration order of a parameter is known.
func IsRegistered(name string) bool { return position(name) < len(registration) }

func position(name string) int {
	if i := slices.Index(registration, name); i >= 0 {
		return i
	}
	return len(registration)
}

// ParametersOf lists the parameters of a module among paths, in registration order. The paths may
// lack their beginning.
func ParametersOf(module string, paths []string) []string {
	var all []string
	for _, p := range paths {
		parent, leaf := Module(p), Leaf(p)
		if (module == parent || strings.HasSuffix(module, "."+parent)) && !slices.Contains(all, leaf) {
			all = append(all, leaf)
		}
	}
	return RegistrationOrder(all)
}

// nesting is the segment that PEFT adds to a module's path for each layer around it.
const nesting = ".base_layer"

// CutNesting removes PEFT's layers from the end of a path, and counts them.
func CutNesting(path string) (module string, depth int) {
	for strings.HasSuffix(path, nesting) {
		path = strings.TrimSuffix(path, nesting)
		depth++
	}
	return path, depth
}

// CutWrapper removes the layer that PEFT puts between a torch.nn.MultiheadAttention and its
// out_proj, and reports whether there was one.
func CutWrapper(path string) (module string, wasThere bool) {
	before, after, found := strings.Cut(path, nesting+".")
	if !found {
		return path, false
	}
	return before + "." + after, true
}

// ExpertParts returns the weights of an expert that make up a stacked parameter, under the base's
// names. It returns nil if the base has no module per expert.
func (b *Base) ExpertParts(module, parameter string) []string {
	for _, parts := range expertParts[parameter] {
		if b.HasTail(Leaf(module) + ".0." + parts[0] + ".weight") {
			return parts
		}
	}
	return nil
}

// StackedParts returns the parts of a stacked parameter that the base stacks apart, as llama.cpp
// does. It returns nil if the base has none.
func StackedParts(b *Base, module, parameter string) []string {
	for _, parts := range expertParts[parameter] {
		if b.HasTail(Leaf(module) + "." + parts[0]) {
			return parts
		}
	}
	return nil
}

// ExpertPart maps one weight of one expert to the stacked parameter that contains it: it is part
// number part, of parts.
func ExpertPart(module string) (parameter string, expert, part, parts int, ok bool) {
	if strings.Contains(module, "_projs.") {
		if m := oneExpert.FindStringSubmatch(module); m != nil {
			expert, err := strconv.Atoi(m[3])
			return m[1] + "experts." + m[2], expert, 0, 1, err == nil
		}
	}
	experts, leaf := Module(module), Leaf(module)
	expert, err := strconv.Atoi(Leaf(experts))
	if err != nil {
		return "", 0, 0, 0, false
	}
	parameter, part, parts, ok = partOfExperts(Module(experts), leaf)
	return parameter, expert, part, parts, ok
}

// IsExpertOfUnsloth reports whether a module is one expert of gpt-oss as unsloth has it.
func IsExpertOfUnsloth(module string) bool { return oneExpert.MatchString(module) }

// oneExpert matches the module per expert that unsloth makes for gpt-oss.
var oneExpert = regexp.MustCompile(`^(.*\.)?experts\.(gate_up_proj|down_proj)s\.(\d+)$`)

// PartOfExperts maps a weight that every expert has, such as experts.up_proj, to the stacked
// parameter that contains it. A stacked parameter maps to itself.
func PartOfExperts(path string) (parameter string, part, parts int, ok bool) {
	return partOfExperts(Module(path), Leaf(path))
}

func partOfExperts(experts, leaf string) (parameter string, part, parts int, ok bool) {
	if !IsExperts(experts) {
		return "", 0, 0, false
	}
	for name, styles := range expertParts {
		for _, style := range styles {
			if i := slices.Index(style, leaf); i >= 0 {
				return experts + "." + name, i, len(style), true
			}
		}
		if leaf == name {
			return experts + "." + leaf, 0, 1, true
		}
	}
	return "", 0, 0, false
}

// HasWeight reports whether a tensor path of the base ends with the last n segments of a module and
// "weight". It allocates nothing: planning asks it for every layer.
func HasWeight(b *Base, module string, n int) bool {
	at := len(module)
	for range n {
		if at = strings.LastIndexByte(module[:max(at, 0)], '.'); at < 0 {
			break
		}
	}
	var room [120]byte
	return tailsOf(b)[string(append(append(room[:0], module[at+1:]...), ".weight"...))]
}

// HasTail reports whether a tensor path of the base ends with the given segments, at most maxTail.
func (b *Base) HasTail(tail string) bool { return tailsOf(b)[tail] }

// tailsOf returns the ends of all tensor paths, of up to maxTail segments.
func tailsOf(b *Base) map[string]bool {
	if b.tails == nil {
		b.tails = make(map[string]bool)
		for name := range b.all() {
			var tails [maxTail]string // the longest one last
			n, at := 0, len(name)
			for ; n < maxTail && at >= 0; n++ {
				at = strings.LastIndexByte(name[:at], '.')
				tails[n] = name[at+1:]
			}
			for n--; n >= 0 && !b.tails[tails[n]]; n-- { // a known tail has known tails
				b.tails[tails[n]] = true
			}
		}
	}
	return b.tails
}

// maxTail is enough for one weight of one expert: experts.7.up_proj.weight.
const maxTail = 4
