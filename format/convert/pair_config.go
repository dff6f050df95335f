package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/pyre"
)

// plainFeatures are those that a configuration in the header may require without another reading of
// the factors. DoRA is not among them: a layer announces its own magnitudes.
var plainFeatures = []format.Feature{
	format.FeatureALoRA, format.FeatureArrow, format.FeatureConfigField, format.FeatureCorDA,
	format.FeatureKaSA, format.FeatureLayerReplication, format.FeatureLoftQ, format.FeatureLoRAGA,
	format.FeatureOLoRA, format.FeaturePEFTType, format.FeaturePiSSA, format.FeaturePiSSANiter,
	format.FeatureWeightTying,
}

// readConfigs reads the configurations in the header. Their fields begin with the component
// (transformer.r), unless the file is of a single model.
func (p *pairReader) readConfigs(ctx context.Context) error {
	text := p.metadata[diffusersMetadata]
	if text == "" {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := jsontext.Decode([]byte(text), &fields); err != nil {
		return fault.New(fault.Corrupt, "%s in the header is not JSON: %v", diffusersMetadata, err)
	}
	byPrefix := make(map[string]map[string]json.RawMessage)
	for name, value := range fields {
		i := strings.LastIndex(name, ".") + 1
		if byPrefix[name[:i]] == nil {
			byPrefix[name[:i]] = map[string]json.RawMessage{"peft_type": []byte(`"LORA"`)}
		}
		byPrefix[name[:i]][name[i:]] = value
	}
	for prefix, fields := range byPrefix {
		c, err := p.readConfig(ctx, prefix, fields)
		if err != nil {
			return about(err, diffusersMetadata+" in the header, "+prefix+"*")
		}
		p.configs = append(p.configs, c)
	}
	slices.SortFunc(p.configs, func(x, y *pairConfig) int { // the longest prefix first
		return len(y.prefix) - len(x.prefix)
	})
	return nil
}

// about puts a prefix in front of an error's message.
func about(err error, what string) error {
	if e, ok := err.(*fault.Error); ok {
		e.Msg = what + ": " + e.Msg
	}
	return err
}

func (p *pairReader) readConfig(
	ctx context.Context, prefix string, fields map[string]json.RawMessage,
) (*pairConfig, error) {
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	config, err := parsePEFTConfig(text)
	if err != nil {
		return nil, err
	}
	config.patterns.budget = pyre.NewBudget(ctx, patternSteps)
	c := &pairConfig{prefix: prefix, peftReader: &peftReader{config: config}}
	c.tensors, c.manifest = p.tensors, p.manifest
	modules := make(map[string]map[peftRole]int)
	for module, roles := range p.layers {
		if name, ok := strings.CutPrefix(module, prefix); ok {
			modules[name] = roles
		}
	}
	(&eraChoice{peftReader: c.peftReader, modules: modules}).decide()
	return c, nil
}

// configOf returns the configuration for a module and the name that it has there; nil if the header
// has none.
func (p *pairReader) configOf(module string) (c *pairConfig, name string) {
	for _, c := range p.configs {
		if name, ok := strings.CutPrefix(module, c.prefix); ok {
			return c, name
		}
	}
	return nil, ""
}

// scaleByConfig gives a layer the scale that its configuration says.
func (p *pairReader) scaleByConfig(l *format.Layer, c *pairConfig, name string) {
	rank, _ := c.config.rank(name)
	l.Alpha, _ = c.config.alpha(name)
	l.Scaling = c.config.scaling()
	if l.Kind != format.Other && rank != l.Rank {
		p.require(format.FeatureRankMismatch,
			fmt.Sprintf("%s: A has rank %d, the configuration says %d", l.Module, l.Rank, rank))
	}
	isDoRA := func(r format.Requirement) bool { return r.Feature == format.FeatureDoRA }
	if slices.ContainsFunc(c.config.requires, isDoRA) {
		p.require(format.FeatureDoRA, l.Module) // merge refuses a layer without magnitudes
	}
}

// requireConfigs adds what the configurations require beyond the formula.
func (p *pairReader) requireConfigs() {
	for _, c := range p.configs {
		c.requirePatterns()
		for _, r := range slices.Concat(c.out.Requires, c.config.requires) {
			switch {
			case r.Feature == format.FeatureDoRA:
			case r.Feature == format.FeaturePattern, slices.Contains(plainFeatures, r.Feature):
				p.out.Requires = append(p.out.Requires, r)
			default:
				p.require(format.FeatureConfigField, c.prefix+r.Where)
			}
		}
		p.manifest.Notes = append(p.manifest.Notes, c.config.notes...)
		if p.out.Base.Name == "" {
			p.out.Base.Name, p.out.Base.Revision = c.config.BaseModel, c.config.Revision
		}
	}
}
