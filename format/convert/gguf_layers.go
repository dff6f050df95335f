package convert

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/naming"
)

// ggufReader makes layers of the tensors of a GGUF file.
type ggufReader struct {
	collector
	file  *gguf.File
	model *naming.LlamaCpp
	alpha float64 // 0 means the scale 1
}

func (r *ggufReader) adapter(ctx context.Context) (format.Adapter, error) {
	r.out = format.Adapter{Method: format.MethodLoRA, Dialect: GGUF().Name()}
	if err := r.readKeys(); err != nil {
		return r.out, err
	}
	layers := make(map[string]map[format.Role]int) // by tensor of the base
	for i := range r.tensors {
		if err := ctx.Err(); err != nil {
			return r.out, err
		}
		name := r.tensors[i].Name
		target, role := name, format.Role("")
		if at, ok := strings.CutSuffix(name, ggufA); ok {
			target, role = at, roleA
		} else if at, ok := strings.CutSuffix(name, ggufB); ok {
			target, role = at, roleB
		}
		if _, known := r.model.Module(target); role == "" || !known {
			r.opaque(i)
			r.require(format.FeatureUnknownTensor, name)
			continue
		}
		if layers[target] == nil {
			layers[target] = make(map[format.Role]int)
		}
		layers[target][role] = i
	}
	for _, target := range slices.Sorted(maps.Keys(layers)) {
		r.layer(target, layers[target])
	}
	return r.sorted(), nil
}

// readKeys reads what the keys say of the adapter.
func (r *ggufReader) readKeys() error {
	kind, err := r.file.Text(ggufAdapterType)
	if err != nil {
		return err
	}
	if kind != "lora" {
		return fault.New(fault.Unsupported, "%s is %q, want \"lora\"", ggufAdapterType, kind)
	}
	architecture, err := r.file.Text(ggufArchitecture)
	if err != nil {
		return err
	}
	if r.model = naming.LlamaCppNamed(architecture); r.model == nil {
		return fault.New(fault.Unsupported, "the adapter is for models of the architecture %q, whose names are not known; known are %s",
			architecture, naming.LlamaCppArchitectures())
	}
	if v, ok := r.file.Value(ggufAlpha); ok {
		x, isFloat := v.Float()
		if !isFloat || v.Type != gguf.Float32 || x-x != 0 {
			return fault.New(fault.Corrupt, "%s is %v, want a finite number of type float32", ggufAlpha, v)
		}
		r.alpha = x
	}
	if v, ok := r.file.Value(ggufTokens); ok {
		tokens, isUints := v.Uints()
		if !isUints || v.Elem != gguf.Uint32 {
			return fault.New(fault.Corrupt, "%s is %v, want an array of type uint32", ggufTokens, v)
		}
		r.require(format.FeatureALoRA, tokensText(tokens))
	}
	r.out.Base.Name = r.baseName()
	return nil
}

// tokensField is the field of PEFT's configuration that holds the tokens.
const tokensField = "alora_invocation_tokens"

func tokensText(tokens []uint64) string {
	words := make([]string, len(tokens))
	for i, t := range tokens {
		words[i] = strconv.FormatUint(t, 10)
	}
	return tokensField + " = [" + strings.Join(words, ", ") + "]"
}

// baseName returns the base's name on the hub if the file has it, or else the name in words.
func (r *ggufReader) baseName() string {
	url, _ := r.file.Text(ggufBaseURL)
	if name, ok := strings.CutPrefix(url, hubURL); ok && checkName(name) == nil {
		return name
	}
	if name, _ := r.file.Text(ggufBaseName); checkName(name) == nil {
		return name
	}
	return ""
}

// layer adds the layer for a tensor of the base.
func (r *ggufReader) layer(target string, roles map[format.Role]int) {
	module, _ := r.model.Module(target)
	l := format.Layer{
		Module: module, Kind: format.Linear, Rank: 1, Roles: roles,
		Scaling: format.AlphaOverR, Alpha: r.alpha,
	}
	if r.alpha == 0 {
		l.Scaling, l.Fixed = format.Fixed, 1
	}
	r.classify(&l, target)
	r.out.Layers = append(r.out.Layers, l)
}

// classify sets the kind and the rank by the shapes.
func (r *ggufReader) classify(l *format.Layer, target string) {
	ia, hasA := l.Roles[roleA]
	ib, hasB := l.Roles[roleB]
	if !hasA || !hasB {
		r.require(format.FeatureMissingFactor, l.Module+": "+target+map[bool]string{true: ggufB, false: ggufA}[hasA])
		l.Kind = format.Other
		return
	}
	a, b := r.tensors[ia].Shape, r.tensors[ib].Shape
	n := len(a)
	isExperts := strings.HasSuffix(target, "_exps.weight")
	fits := n >= 2 && len(b) == n && a[n-2] == b[n-1] && a[n-2] > 0 && a[n-2] <= maxRank &&
		(n == 2 && !isExperts || n == 3 && isExperts && a[0] == b[0] && a[0] > 0)
	if !fits {
		r.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_a %d, lora_b %d", l.Module, a, b))
		l.Kind = format.Other
		return
	}
	l.Rank = int(a[n-2])
	switch {
	case isExperts:
		l.Kind = format.Other
		r.require(format.FeatureExpertFactors, fmt.Sprintf("%s: lora_a %d, lora_b %d", l.Module, a, b))
	case target == ggufEmbedding:
		l.Kind = format.Embedding
	case r.model.HasPairs(target):
		r.require(format.FeatureRotaryPairs, l.Module)
	}
}
