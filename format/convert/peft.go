package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/card"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/pyre"
)

// PEFT returns the dialect of huggingface/peft: a directory as PEFT saves it, or its file of
// weights with the other files beside it.
func PEFT() Dialect { return peftDialect{} }

type peftDialect struct{}

func (peftDialect) Name() string   { return "peft" }
func (peftDialect) String() string { return "peft" }

func (peftDialect) Writes(ext string) bool {
	return ext == "" || weightsExt[ext] == safetensorsFile
}

func (peftDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	return &peftSink{path, o}, nil
}

func (peftDialect) CreateTo(out output.Output, o CreateOptions) (format.Sink, error) {
	return &peftFiles{out, o}, nil
}

// Recognise looks for the configuration, because other programs write the same keys. Only PEFT
// writes its prefix.
func (peftDialect) Recognise(in *Input) bool {
	return hasPEFTConfig(in) && !isStranger(in) || claimsOf(in)[peftAlone.name] != ""
}

// isStranger reports whether a file that the user names only lies beside a configuration of PEFT:
// no key is PEFT's, another dialect claims some, and the file says its scales itself. People keep
// the files of image models in one folder.
func isStranger(in *Input) bool {
	// torchtune writes a configuration for PEFT beside its own keys.
	isTorchtunes := func(t format.Tensor) bool {
		return strings.Contains(t.Name, "lora_a") || strings.Contains(t.Name, "lora_b")
	}
	if in.readTable() == nil && slices.ContainsFunc(in.table.tensors, isTorchtunes) && claimsOf(in)[torchtune.name] != "" {
		return true
	}
	if in.isFolder() || in.name == peftWeights || in.name == peftPickle || in.readTable() != nil {
		return false
	}
	hasAlpha := false
	for i := range in.table.tensors {
		name := in.table.tensors[i].Name
		if isPEFTKey(name) {
			return false
		}
		hasAlpha = hasAlpha || strings.HasSuffix(name, ".alpha")
	}
	return hasAlpha && len(claimsOf(in)) > 0
}

// hasPEFTConfig reports whether PEFT's configuration lies beside the weights, or a file under its
// name that cannot be read.
func hasPEFTConfig(in *Input) bool {
	text, err := in.ReadFile(format.PEFTConfig, maxSideBytes)
	return in.file != nil && (err != nil || text != nil && isPEFTConfig(text))
}

// Open opens a file of weights, safetensors or pickle, with the configuration beside it.
func (peftDialect) Open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	if !hasPEFTConfig(in) {
		src, err := peftAlone.Open(ctx, in, o)
		if errors.Is(err, errNoScale) {
			return nil, in.refuse()
		}
		return src, err
	}
	if err := o.refuseScale(format.PEFTConfig); err != nil {
		return nil, err
	}
	if err := in.readTable(); err != nil {
		return nil, err
	}
	f := &tensorFile{table: in.table}
	f.manifest.Tensors = in.table.tensors
	if err := f.readPEFT(ctx, in); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *tensorFile) readPEFT(ctx context.Context, in *Input) error {
	text, err := in.ReadFile(format.PEFTConfig, maxSideBytes)
	if err != nil {
		return err
	}
	config, err := parsePEFTConfig(text)
	if err != nil {
		return fault.InFile(err, in.sibling(format.PEFTConfig))
	}
	if len(f.tensors) == 0 {
		return fault.New(fault.Corrupt, "the file holds no tensors").In(in.Path()).
			WithHint("the adapter was saved before it was trained, from the wrong object, or by a process that held no weights, as with ZeRO-3 and FSDP")
	}
	isPEFTs := func(t format.Tensor) bool { return isPEFTKey(t.Name) }
	if config.PEFTType == "LORA" && !slices.ContainsFunc(f.tensors, isPEFTs) {
		if dialect := naming.Dialect(f.keys()); dialect != "" {
			return fault.New(fault.Unsupported, "the configuration is PEFT's, but the keys are %s", dialect).
				In(in.Path()).WithHint("%s", hintBeside(in, dialect))
		}
	}
	readme, err := in.ReadFile(format.ModelCard, maxSideBytes)
	if err != nil {
		return err
	}
	// Sorted by name, as spec/FORMAT.md requires of attachments.
	if readme != nil {
		f.attach(format.ModelCard, readme)
	}
	f.attach(format.PEFTConfig, text)
	f.manifest.Notes = append(f.manifest.Notes, config.notes...)
	f.manifest.Provenance.Source = "PEFT " + config.PEFTVersion
	f.describe()
	config.patterns.budget = pyre.NewBudget(ctx, patternSteps)
	if config.BaseModel == "" {
		if bases := card.Parse(readme).BaseModels; len(bases) > 0 {
			config.BaseModel = bases[0]
		}
	}
	p := peftReader{collector: f.collector(), config: config, saved: readSaved(text)}
	f.manifest.Adapters = []format.Adapter{p.adapter(ctx)}
	if err := ctx.Err(); err != nil { // the adapter is incomplete
		return err
	}
	if metadata := f.metadata(); metadata != nil {
		prints, err := baseOf(metadata)
		if err != nil {
			return fault.InFile(err, in.Path())
		}
		f.manifest.Adapters[0].Base.Fingerprints = prints
	}
	return nil
}

// adapter assigns every tensor of the file to a layer or lists it beside the layers. If ctx ends,
// the adapter is incomplete.
func (p *peftReader) adapter(ctx context.Context) format.Adapter {
	c := p.config
	p.names = make(map[string]bool)
	p.out = format.Adapter{
		Method:  c.method(),
		Dialect: "peft",
		Base:    format.Base{Name: c.BaseModel, Revision: c.Revision},
	}
	// PEFT corrects a wrong fan_in_fan_out in memory, with a warning, so the file may have another
	// value than the training.
	if c.FanInFanOut != nil {
		p.out.Orientation = format.MxN
		if *c.FanInFanOut {
			p.out.Orientation = format.NxM
		}
	}
	if c.PEFTType != "LORA" {
		for i := range p.tensors {
			p.opaque(i)
		}
		return p.sorted()
	}

	modules := make(map[string]map[peftRole]int, len(p.tensors)/2)
	var plain []peftKey
	var plainTensors []int
	wrapped := "" // the first key with segments that are no part of the names
	copies := copies{among: p.tensors}
	var of string // the last module
	var roles map[peftRole]int
	for i := range p.tensors {
		if ctx.Err() != nil {
			return p.out
		}
		key := parsePEFTKey(p.tensors[i].Name)
		if (key.role == rolePlain || key.role == roleUnknown) && copies.has(p.tensors[i].Name) {
			p.opaque(i)
			p.require(format.FeatureUnloaded, p.tensors[i].Name)
			continue
		}
		switch shape := p.tensors[i].Shape; {
		case len(shape) != 1 || shape[0] != 0:
		case key.role == rolePlain: // the base's tensor may be empty, too
			p.note("%s is empty, as DeepSpeed ZeRO-3 leaves parameters that were not gathered before saving", p.tensors[i].Name)
		default:
			p.require(format.FeatureEmptyTensor, p.tensors[i].Name)
		}
		if key.isWrapped && wrapped == "" {
			wrapped = p.tensors[i].Name
		}
		if key.adapter != "" {
			p.names[key.adapter] = true
		}
		if key.role != rolePlain {
			p.factors.some = true
			p.factors.bare = p.factors.bare || key.isBare
		}
		switch key.role {
		case rolePlain:
			plain, plainTensors = append(plain, key), append(plainTensors, i)
		case roleTokens:
			p.tokens(key.module, i)
		case roleState:
			p.opaque(i)
			p.require(stateOf(p.tensors[i].Name), p.tensors[i].Name)
		case roleUnknown:
			p.opaque(i)
			p.require(format.FeatureUnknownTensor, p.tensors[i].Name)
		default:
			if roles == nil || key.module != of { // A and B mostly follow each other
				of, roles = key.module, modules[key.module]
			}
			if roles == nil {
				roles = make(map[peftRole]int)
				modules[of] = roles
			}
			if _, taken := roles[key.role]; taken {
				p.opaque(i)
				p.require(format.FeatureTwice, p.tensors[i].Name)
				continue
			}
			roles[key.role] = i
		}
	}
	if wrapped != "" {
		p.note("the keys have segments of torch.compile, FSDP or activation checkpointing, such as %s, which are left out of the names", naming.Wrapper(wrapped))
	}
	p.addSaved(ctx, plain, plainTensors, modules)
	if len(p.names) > 1 {
		p.require(format.FeatureSeveralNames, fmt.Sprint(len(p.names)))
	}
	if len(p.config.Parameters) > 0 {
		p.countLevels(modules)
	}
	(&eraChoice{peftReader: p, modules: modules}).decide()
	p.out.Layers = slices.Grow(p.out.Layers, len(modules))
	for _, module := range slices.Sorted(maps.Keys(modules)) {
		if ctx.Err() != nil {
			return p.out
		}
		p.layer(module, modules[module])
	}
	p.requirePatterns()
	p.checkBias()
	return p.sorted()
}

// sorted returns the adapter with the requirements of its configuration.
func (p *peftReader) sorted() format.Adapter {
	p.out.Requires = append(p.out.Requires, p.config.requires...)
	return p.collector.sorted()
}

// layer makes the layer of one module from its tensors. It keeps the map roles: these maps take
// most of the memory of a manifest.
func (p *peftReader) layer(module string, roles map[peftRole]int) {
	l := format.Layer{Module: module, Kind: format.Linear, Scaling: p.config.scaling(), Roles: roles}
	hasA, hasB := hasRole(roles, roleA), hasRole(roles, roleB)
	isPair := hasA && hasB && len(roles) == 2 // as nearly every layer
	if !isPair && (hasRole(roles, roleEmbeddingA) || hasRole(roles, roleEmbeddingB)) {
		if hasA || hasB {
			p.require(format.FeatureUnknownTensor, module)
		} else {
			l.Kind = format.Embedding
			renameRole(roles, roleEmbeddingA, roleA)
			renameRole(roles, roleEmbeddingB, roleB)
			hasA, hasB = hasRole(roles, roleA), hasRole(roles, roleB)
		}
	}
	name := p.patternName(module)
	rank, pattern := p.config.rank(name)
	alpha, alphaPattern := p.config.alpha(name)
	l.Rank, l.Alpha = max(rank, 1), alpha
	for _, overlap := range []*patternMatch{pattern, alphaPattern} {
		if overlap != nil && overlap.conflict != "" {
			p.note("%s: the keys %q and %q both match %s and disagree; the first in the file wins, as in PEFT",
				overlap.field, overlap.key, overlap.conflict, name)
		}
	}
	p.classify(&l, hasA, hasB, rank)
	if !isPair {
		p.roleFeatures(&l)
	}
	p.out.Layers = append(p.out.Layers, l)
}

func hasRole(roles map[peftRole]int, r peftRole) bool { _, ok := roles[r]; return ok }

func renameRole(roles map[peftRole]int, from, to peftRole) {
	if i, ok := roles[from]; ok {
		delete(roles, from)
		roles[to] = i
	}
}

// classify derives the kind and the rank of a layer from the shapes of its factors. The shapes are
// the truth; a configuration that disagrees becomes a requirement.
func (p *peftReader) classify(l *format.Layer, hasA, hasB bool, rank int) {
	if !hasA || !hasB {
		missing := "lora_A"
		if hasA {
			missing = "lora_B"
		}
		if len(l.Roles) > 0 {
			p.require(format.FeatureMissingFactor, l.Module+"."+missing)
		}
		l.Kind = format.Other
		return
	}
	a, b := p.tensors[l.Roles[format.RoleA]], p.tensors[l.Roles[format.RoleB]]
	_, depth := naming.CutNesting(l.Module)
	if _, is := naming.CutWrapper(l.Module); is {
		p.require(format.FeatureMultiheadAttention, l.Module) // the factors of its out_proj
	}
	switch {
	case depth > 0 || p.config.hasExperts && p.config.isExpert(l.Module):
		l.Kind = format.Expert
		if fits := p.checkExperts(l, &a, &b, rank); fits && a.Shape[1] == b.Shape[0] && len(l.Roles) == 2 {
			l.Kind = p.config.squareKind()
		}
		return
	case l.Kind == format.Linear && p.config.isCompact():
		l.Kind = format.Other
		p.checkCompact(l, &a, &b, rank)
		return
	case isPerExpert(a.Shape, b.Shape, rank):
		p.require(format.FeatureExpertFactors, fmt.Sprintf("%s: lora_A %d, lora_B %d", l.Module, a.Shape, b.Shape))
		l.Kind = format.Other
		return
	case len(a.Shape) >= 3 && len(b.Shape) == len(a.Shape):
		p.require(format.FeatureConvolution, l.Module)
		l.Kind = format.Conv
		if a.Shape[0] != uint64(rank) {
			p.require(format.FeatureRankMismatch, fmt.Sprintf("%s: lora_A has rank %d, the configuration says %d", l.Module, a.Shape[0], rank))
		}
		return
	case len(a.Shape) != 2 || len(b.Shape) != 2:
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_A %d, lora_B %d", l.Module, a.Shape, b.Shape))
		l.Kind = format.Other
		return
	}
	if rA, rB := a.Shape[0], b.Shape[1]; rA != rB || rA != uint64(rank) {
		p.require(format.FeatureRankMismatch, fmt.Sprintf("%s: lora_A has rank %d, lora_B %d, the configuration says %d", l.Module, rA, rB, rank))
		if rA != rB || rA == 0 || rA > maxRank {
			l.Kind = format.Other
			return
		}
	}
	l.Rank = int(a.Shape[0])
}

// isPerExpert reports whether factors of three dimensions hold one matrix per expert. Then A is
// E×r×n and B is E×m×r, or has 1 in place of E. The factors of a convolution are r×in×k and m×r×1.
// At rank 1 the last dimension of B is 1 in both cases; if the other dimensions fit both, the
// configured rank decides.
func isPerExpert(a, b []uint64, rank int) bool {
	if len(a) != 3 || len(b) != 3 || b[2] > 1 {
		return len(a) == 3 && len(b) == 3
	}
	fits := a[1] == 1 && b[2] == 1 && (a[0] == b[0] || a[0] == 1 || b[0] == 1)
	fitsConvolution := a[0] == b[1]
	return fits && (!fitsConvolution || rank == 1 && a[0] != 1)
}

// roleFeatures adds the features that the roles beyond A and B need.
func (p *peftReader) roleFeatures(l *format.Layer) {
	for role := range l.Roles {
		switch role {
		case format.RoleA, format.RoleB:
		case format.RoleBias:
			p.require(format.FeatureLoRABias, l.Module)
			if !p.config.LoRABias {
				p.note("%s has a lora_B.bias although lora_bias is false; it is applied, PEFT would ignore it", l.Module)
			}
		case format.RoleMagnitude:
			p.require(format.FeatureDoRA, l.Module)
			p.checkMagnitude(l)
		case roleDiag:
			p.require(format.FeatureKaSA, l.Module)
		default:
			p.require(format.FeatureUnknownTensor, l.Module+"."+string(role))
		}
	}
}

// checkMagnitude changes the kind of a layer to Other unless it has one magnitude per output. DoRA
// embeddings of mlx-lm, for example, have one per token.
func (p *peftReader) checkMagnitude(l *format.Layer) {
	if l.Kind != format.Linear && l.Kind != format.Embedding {
		return
	}
	m, b := &p.tensors[l.Roles[format.RoleMagnitude]], &p.tensors[l.Roles[format.RoleB]]
	if m.Elements() != int64(b.Shape[0]) {
		p.require(format.FeatureFactorShape, fmt.Sprintf("%s: lora_magnitude_vector %d, lora_B %d", l.Module, m.Shape, b.Shape))
		l.Kind = format.Other
	}
}

// tokens adds trained rows of an embedding. Only the configuration knows their indices.
func (p *peftReader) tokens(module string, i int) {
	t := p.tensors[i]
	rows, why := p.config.tokenRows(module)
	if why == "" && (len(t.Shape) != 2 || t.Shape[0] != uint64(len(rows))) {
		why = fmt.Sprintf("%s has shape %d, trainable_token_indices lists %d tokens", t.Name, t.Shape, len(rows))
	}
	if why == "" {
		sorted := slices.Sorted(slices.Values(rows))
		if len(slices.Compact(sorted)) != len(rows) || sorted[0] < 0 {
			why = fmt.Sprintf("trainable_token_indices of %s has a repeated or a negative token", module)
		}
	}
	if why != "" {
		p.opaque(i)
		p.require(format.FeatureTokenIndices, why)
		return
	}
	p.out.Beside = append(p.out.Beside, format.Beside{Action: format.Rows, Target: module + ".weight", Tensor: i, Rows: rows})
}

// checkBias notes biases that were trained but not saved.
func (p *peftReader) checkBias() {
	if p.config.Bias == "none" || p.config.Bias == "" {
		return
	}
	for _, b := range p.out.Beside {
		if strings.HasSuffix(b.Target, ".bias") {
			return
		}
	}
	p.note("the configuration says bias = %q, but the file holds no bias: either the model has none, or PEFT lost them on saving (0.7 to 0.20.0 did so with lora_only)",
		p.config.Bias)
}
