package report

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Checkpoint is the report on a base or merged model.
type Checkpoint struct {
	Kind         string              `json:"kind"` // "checkpoint"
	ModelType    string              `json:"model_type"`
	Files        int                 `json:"files"`
	Tensors      int                 `json:"tensors"`
	Parameters   int64               `json:"parameters"`
	Bytes        int64               `json:"bytes"` // of all weight files
	DTypes       []DTypeCount        `json:"dtypes"`
	Roles        []RoleCount         `json:"roles"`
	Shards       []Shard             `json:"shards"`         // the weight files
	Tied         string              `json:"tied,omitempty"` // the input embedding that is the output head, too
	Quantization string              `json:"quantization"`
	Schemes      []SchemeCount       `json:"schemes,omitempty"`    // of quantised weights
	Components   []Component         `json:"components,omitempty"` // of an image or video model
	Merged       []checkpoint.Merged `json:"merged"`               // merges recorded in the stamps
	Cost         *Cost               `json:"lora_cost,omitempty"`
	Listed       []StoredTensor      `json:"listed,omitempty"` // every tensor, only with CheckpointOptions.List
}

// StoredTensor is a tensor of a checkpoint.
type StoredTensor struct {
	Tensor   string   `json:"tensor"`
	DType    string   `json:"dtype"`
	Shape    []uint64 `json:"shape"`
	Elements int64    `json:"elements"`
	Bytes    int64    `json:"bytes"`
	Role     string   `json:"role"`
	File     string   `json:"file"`
}

// CheckpointOptions tune DescribeCheckpoint.
type CheckpointOptions struct {
	List    bool     // list every tensor
	Rank    int      // of a LoRA whose cost is computed; 0 computes none
	Targets []string // its modules, by the ends of their paths; nil means every matrix except embeddings and output heads
}

// RoleCount is the share of the tensors with one role, as their names tell it: embeddings,
// attention, mlp, norms, head or other.
type RoleCount struct {
	Role       string `json:"role"`
	Tensors    int    `json:"tensors"`
	Parameters int64  `json:"parameters"`
}

// SchemeCount is the share of the weights that are quantised in one way.
type SchemeCount struct {
	Scheme     string `json:"scheme"`
	Tensors    int    `json:"tensors"`
	Parameters int64  `json:"parameters"`        // 0 for weights that cannot be read
	Refusal    string `json:"refusal,omitempty"` // why the first of them cannot be read
}

// Shard is a file of weights.
type Shard struct {
	File    string `json:"file"`
	Bytes   int64  `json:"bytes"`
	Tensors int    `json:"tensors"`
}

// Component is a component of an image or video model: its denoiser or a text encoder.
type Component struct {
	Name         string `json:"name"`         // as diffusers calls it; "" for the tensors of no component
	Prefix       string `json:"prefix"`       // what the names of its tensors begin with
	Architecture string `json:"architecture"` // "" if its names are of no known one
	Weights      int    `json:"weights"`      // tensors of two or more dimensions
}

// Cost counts the parameters of a LoRA of a given rank: N = Σ r·(m + n) over the adapted weights
// (Hu et al., section 4.2 and table 2: L·n·r·(d_in + d_out)).
type Cost struct {
	Rank       int          `json:"rank"`
	Targets    []TargetCost `json:"targets"`
	Parameters int64        `json:"parameters"`
	Share      float64      `json:"share"` // of the parameters of the checkpoint
}

// TargetCost is the share of the modules with one name.
type TargetCost struct {
	Name       string `json:"name"`
	Modules    int    `json:"modules"`
	Parameters int64  `json:"parameters"`
}

// DescribeCheckpoint reports on a checkpoint.
func DescribeCheckpoint(c *checkpoint.Checkpoint, o CheckpointOptions) (*Checkpoint, error) {
	stored := checkpoint.Stored(c)
	r := &Checkpoint{Kind: "checkpoint", ModelType: c.Config.ModelType, Files: len(c.Files), Bytes: stored.Bytes(), Quantization: c.Config.QuantizationMethod, Shards: []Shard{}}
	counts := make(dtypeCounts)
	for _, name := range stored.Names() {
		ref, _ := stored.Lookup(name)
		counts.add(cmp.Or(ref.Tensor.Scheme, ref.Tensor.DType.String()), ref.Tensor.NBytes)
	}
	quantised := make(map[string]int64) // bytes in the files
	for _, q := range checkpoint.QuantisedOf(c) {
		for _, part := range q.Parts {
			ref, _ := stored.Lookup(part)
			quantised[q.Name] += ref.Tensor.NBytes
		}
	}
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		r.Tensors++
		r.Parameters += ref.Tensor.Elements()
		if o.List {
			t := ref.Tensor
			nBytes, isQuantised := quantised[name]
			if !isQuantised {
				nBytes = t.NBytes
			}
			r.Listed = append(r.Listed, StoredTensor{
				name, cmp.Or(t.Scheme, t.DType.String()), t.Shape, t.Elements(), nBytes, naming.RoleOf(name), c.FileOf(name),
			})
		}
	}
	r.DTypes = counts.sorted()
	r.addSchemes(c)
	r.addRoles(c)
	for _, f := range stored.Files {
		r.Shards = append(r.Shards, Shard{f.Name, f.Size, len(f.Tensors)})
	}
	r.Merged = c.History()
	names := naming.IndexOf(c.Names(), c.Config.Architecture)
	shapes := func(name string) []uint64 {
		ref, _ := c.Lookup(names.Actual(name))
		return ref.Tensor.Shape
	}
	r.addTie(c, names)
	for _, part := range naming.Components(names, shapes) {
		r.Components = append(r.Components, Component(part))
	}
	if o.Rank <= 0 {
		return r, nil
	}
	var err error
	r.Cost, err = cost(c, o.Rank, o.Targets, r.Parameters)
	return r, err
}

// addSchemes counts the quantised weights by their schemes.
func (r *Checkpoint) addSchemes(c *checkpoint.Checkpoint) {
	counts := make(map[SchemeCount]*SchemeCount)
	count := func(scheme, refusal string) *SchemeCount {
		key := SchemeCount{Scheme: scheme}
		if refusal != "" {
			key.Refusal = "refused"
		}
		if counts[key] == nil {
			counts[key] = &SchemeCount{Scheme: scheme, Refusal: refusal}
		}
		counts[key].Tensors++
		return counts[key]
	}
	for _, q := range checkpoint.QuantisedOf(c) {
		ref, _ := c.Lookup(q.Name)
		count(q.Scheme, "").Parameters += ref.Tensor.Elements()
	}
	for _, u := range checkpoint.UnreadableOf(c) {
		count(u.Scheme, u.Err.Error())
	}
	for _, n := range counts {
		r.Schemes = append(r.Schemes, *n)
	}
	slices.SortFunc(r.Schemes, func(a, b SchemeCount) int {
		return cmp.Or(cmp.Compare(b.Parameters, a.Parameters), cmp.Compare(a.Scheme, b.Scheme), cmp.Compare(a.Refusal, b.Refusal))
	})
}

// addRoles counts the parameters by role.
func (r *Checkpoint) addRoles(c *checkpoint.Checkpoint) {
	counts := make(map[string]*RoleCount)
	for _, name := range c.Names() {
		role := naming.RoleOf(name)
		if counts[role] == nil {
			counts[role] = &RoleCount{Role: role}
		}
		ref, _ := c.Lookup(name)
		counts[role].Tensors++
		counts[role].Parameters += ref.Tensor.Elements()
	}
	r.Roles = []RoleCount{}
	for _, role := range naming.Roles {
		if counts[role] != nil {
			r.Roles = append(r.Roles, *counts[role])
		}
	}
}

// addTie finds out whether head and embedding are one tensor for certain.
func (r *Checkpoint) addTie(c *checkpoint.Checkpoint, names *naming.Base) {
	m := c.Config.Ties()
	m.Shapes = naming.Shapes(names, func(name string) []uint64 {
		ref, _ := c.Lookup(name)
		return ref.Tensor.Shape
	})
	if e := m.Ends(); e.Tied && e.Why == "" {
		r.Tied = names.Actual(e.Embedding)
	}
}

func cost(c *checkpoint.Checkpoint, rank int, targets []string, total int64) (*Cost, error) {
	byName := make(map[string]*TargetCost)
	for _, target := range targets {
		byName[target] = &TargetCost{Name: target}
	}
	for _, name := range c.Names() {
		module, isWeight := strings.CutSuffix(name, ".weight")
		ref, _ := c.Lookup(name)
		nExperts, shape := 1, ref.Tensor.Shape
		if len(shape) == 3 && naming.IsStackOfLlamaCpp(name) {
			nExperts, shape = int(shape[0]), shape[1:]
		}
		if !isWeight || len(shape) != 2 {
			continue
		}
		target := matchTarget(module, targets)
		if target == "" {
			continue
		}
		if byName[target] == nil {
			byName[target] = &TargetCost{Name: target}
		}
		byName[target].Modules += nExperts
		byName[target].Parameters += int64(nExperts) * int64(rank) * int64(shape[0]+shape[1])
	}
	cost, err := sumCosts(byName, rank, total)
	var input *fault.Error
	if errors.As(err, &input) {
		input.WithHint("its modules are called %s", strings.Join(naming.Leaves(c.Names()), ", "))
	}
	return cost, err
}

// sumCosts adds up the costs of targets. A target without a module is an error.
func sumCosts(byName map[string]*TargetCost, rank int, total int64) (*Cost, error) {
	sum := &Cost{Rank: rank, Targets: []TargetCost{}}
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		t := byName[name]
		if t.Modules == 0 {
			missing = append(missing, name)
		}
		sum.Targets = append(sum.Targets, *t)
		sum.Parameters += t.Parameters
	}
	if len(missing) > 0 {
		return nil, fault.New(fault.Mismatch, "the checkpoint has no module with a matrix called %s", fault.List(missing, 5))
	}
	if total > 0 {
		sum.Share = float64(sum.Parameters) / float64(total)
	}
	return sum, nil
}

// matchTarget returns the target that a module's path equals or ends in, as PEFT matches
// target_modules.
func matchTarget(module string, targets []string) string {
	for _, t := range targets {
		if module == t || strings.HasSuffix(module, "."+t) {
			return t
		}
	}
	if len(targets) > 0 {
		return ""
	}
	if naming.IsEmbedding(module) || module == "token_embd" || naming.RoleOf(module+".weight") == naming.RoleHead {
		return ""
	}
	return naming.Leaf(module)
}
