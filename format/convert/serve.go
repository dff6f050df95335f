package convert

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/loratool/loratool/format"
	safefile "github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Servers of language models read PEFT's files, and less than PEFT reads of them. They take one
// rank and one alpha for all layers, ignore the patterns for others, and refuse what is no product
// of two factors. This file writes such files: each layer gets the largest rank, by zeros, and its
// factors carry its scale, so that lora_alpha is the rank.

// server says what a server reads.
type server struct {
	ranks    []int // the values of its flag --max-lora-rank, ascending; nil for any
	usual    int   // the value without the flag; 0 if the first adapter decides
	isPacked bool  // it reads stacked experts, for the models of packedExperts
}

// servers are those of the loaders that are servers of language models.
var servers = map[string]*server{
	// vllm/config/lora.py (MaxLoRARanks), lora/peft_helper.py and lora/lora_model.py; it ignores
	// rsLoRA for experts (issue 55545)
	"vllm": {ranks: []int{1, 8, 16, 32, 64, 128, 256, 320, 512}, usual: 16, isPacked: true},
	// python/sglang/srt/lora/{lora,lora_config,utils}.py; it ignores rsLoRA (issue 40835). Its pull
	// request 27381, which reads stacked experts as PEFT has them, is closed.
	"sglang": {},
}

// server returns what the loader reads, nil if it is no server of language models.
func (o *CreateOptions) server() *server {
	if o.Loader == nil {
		return nil
	}
	return servers[o.Loader.Name]
}

// served plans the files for a server.
type served struct {
	ctx     context.Context
	src     format.Source
	m       *format.Manifest
	a       *format.Adapter
	title   string // of the server
	server  *server
	base    config.Model
	rank    int // of all layers in the file
	layers  []*servedLayer
	tensors []servedTensor
	pack    bool // stacked experts stay as they are
	names   *expertNames
	remarks []string
	cache   []cachedFactor
}

// servedLayer is a layer of the source with the rank of the file and the scale 1.
type servedLayer struct {
	newLayer
	experts int // stacked in its factors; 0 for a layer of one matrix
}

// servedTensor is a tensor of the new file: a factor, or the part of one expert.
type servedTensor struct {
	format.Tensor
	factor *factor
	part   *expertPart
}

// expertPart is a part of a matrix: rows from row on, of each row the columns col, col+step, ….
type expertPart struct{ row, col, step int }

// composeServed returns the configuration, and the writer of the weights, for a server.
func composeServed(ctx context.Context, src format.Source, o *CreateOptions) (
	configuration []byte, weights func(io.Writer) error, remarks []string, err error) {
	s := &served{ctx: ctx, src: src, m: src.Manifest(), title: o.Loader.Title, server: o.server()}
	s.a = &s.m.Adapters[0]
	if o.BaseConfig != nil {
		if s.base, err = config.Parse(o.BaseConfig); err != nil {
			return nil, nil, nil, err
		}
	}
	for _, step := range []func() error{s.check, s.makeLayers, s.chooseExperts, s.makeTensors} {
		if err := step(); err != nil {
			return nil, nil, nil, err
		}
	}
	if configuration, err = s.config(); err != nil {
		return nil, nil, nil, err
	}
	metadata, err := metadataOf(src)
	if err != nil {
		return nil, nil, nil, err
	}
	tensors := make([]format.Tensor, len(s.tensors))
	for i := range s.tensors {
		tensors[i] = s.tensors[i].Tensor
	}
	write := func(w io.Writer) error {
		return safefile.Write(ctx, w, tensors, metadata, s.read)
	}
	return configuration, write, s.remarks, safefile.Check(tensors)
}

func (s *served) remark(text string, args ...any) {
	s.remarks = append(s.remarks, fmt.Sprintf(text, args...))
}

// hintServed is the way out for what no server applies.
const hintServed = "merge the adapter, and serve the merged model"

// check refuses by name what the server does not apply.
func (s *served) check() error {
	if IsOfImages(s.src) {
		return fault.New(fault.Unsupported, "the adapter is of an image or video model, and %s serves "+
			"language models", s.title)
	}
	if len(s.a.Layers) == 0 {
		return fault.New(fault.Unsupported, "the adapter has no factors for %s to apply", s.title).
			WithHint(hintServed)
	}
	if err := s.checkRequires(); err != nil {
		return err
	}
	return s.checkParts()
}

func (s *served) checkRequires() error {
	for _, r := range s.a.Requires {
		switch r.Feature {
		case format.FeatureExperts:
		case format.FeatureRotaryPairs:
			return fault.New(fault.Unsupported, "the adapter has the rows of %s in the order of llama.cpp",
				r.Where).WithHint("name the base, whose config.json says the size of its heads (CreateOptions.Base)")
		default:
			return fault.New(fault.Unsupported, "%s does not apply %q (%s), which the adapter requires", s.title,
				r.Feature, r.Where).WithHint(hintServed)
		}
	}
	return nil
}

// checkParts refuses tensors that are no factors.
func (s *served) checkParts() error {
	if len(s.a.Beside) > 0 {
		b := &s.a.Beside[0]
		why := "is no factor"
		switch b.Action {
		case format.Replace:
			why = "replaces a tensor of the base (modules_to_save, bias)"
		case format.Rows:
			why = "replaces rows of an embedding (trainable_token_indices)"
		}
		return fault.New(fault.Unsupported, "%s applies products of two factors, and %q %s", s.title,
			s.m.Tensors[b.Tensor].Name, why).WithHint(hintServed)
	}
	for i := range s.a.Layers {
		l := &s.a.Layers[i]
		for role := range l.Roles {
			if role == format.RoleBias || role == format.RoleMagnitude {
				return fault.New(fault.Unsupported, "%s applies products of two factors, and the layer %q has "+
					"the role %s as well", s.title, l.Module, role).WithHint(hintServed)
			}
		}
		switch l.Kind {
		case format.Linear, format.Embedding, format.Expert, format.ExpertInputs:
			if naming.IsExpertOfUnsloth(l.Module) {
				return fault.New(fault.Unsupported, "%s has no module %q: it stacks the experts of gpt-oss", s.title, l.Module).
					WithHint(hintServed)
			}
		default:
			return fault.New(fault.Unsupported, "%s applies factors of linear layers and embeddings, and %q has "+
				"the kind %s", s.title, l.Module, l.Kind).WithHint(hintServed)
		}
	}
	return nil
}

// makeLayers gives all layers the largest rank, and the scale 1.
func (s *served) makeLayers() error {
	ranks := make(map[int]bool)
	var rounded []string
	nScaled := 0
	for i := range s.a.Layers {
		ranks[s.a.Layers[i].Rank] = true
		s.rank = max(s.rank, s.a.Layers[i].Rank)
	}
	for i := range s.a.Layers {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		l := &s.a.Layers[i]
		layer, err := s.padded(l)
		if err != nil {
			return err
		}
		if layer.alpha != 1 {
			nScaled++
		}
		remark, err := layer.fold(s.ctx, s.src)
		if err != nil {
			return err
		}
		if remark != "" {
			rounded = append(rounded, l.Module)
		}
		s.layers = append(s.layers, layer)
	}
	if len(ranks) > 1 {
		s.remark("every layer gets the rank %d, by zeros: %s takes one rank for all", s.rank, s.title)
	}
	if nScaled > 0 {
		s.remark("the factors carry the scales of %s, and lora_alpha is the rank, %d",
			fault.Count(nScaled, "layer"), s.rank)
	}
	if rounded != nil {
		s.remark("no factor of %s holds its scale exactly; A is rounded once, to F32, which changes each "+
			"element by less than 1 part in %d", fault.List(rounded, 2), 1<<24)
	}
	return s.checkRank()
}

// checkRank says which rank the server must allow.
func (s *served) checkRank() error {
	flag := s.rank
	if s.server.ranks != nil {
		i, _ := slices.BinarySearch(s.server.ranks, s.rank)
		if i == len(s.server.ranks) {
			return fault.New(fault.Unsupported, "the adapter has rank %d, and %s takes at most %d", s.rank,
				s.title, s.server.ranks[i-1]).WithHint(hintServed)
		}
		flag = s.server.ranks[i]
	}
	if s.server.usual > 0 && flag > s.server.usual {
		s.remark("start %s with max_lora_rank at %d: its default is %d", s.title, flag, s.server.usual)
	}
	for i := range s.a.Layers {
		module := s.a.Layers[i].Module
		if s.a.Layers[i].Kind == format.Embedding || naming.IsHead(module) {
			s.remark("%s applies factors of embeddings and heads (%s) only for models that allow it, and only "+
				"with the vocabulary of the model", s.title, module)
			break
		}
	}
	return nil
}

// padded returns a layer with the rank of the file. PEFT stacks experts one after the other in A,
// and in B the columns of all experts for each k below the rank.
func (s *served) padded(l *format.Layer) (*servedLayer, error) {
	ia, ib := l.Roles[format.RoleA], l.Roles[format.RoleB]
	a, b := wholeOf(s.m, ia), wholeOf(s.m, ib)
	layer := &servedLayer{newLayer: newLayer{name: l.Module, kind: l.Kind, rank: 1, alpha: l.Scale(),
		scaling: format.AlphaOverR, factors: map[format.Role]*factor{format.RoleA: a, format.RoleB: b}}}
	n := 1
	if l.Kind.IsExpert() {
		if len(a.shape) != 2 || len(b.shape) != 2 || a.shape[0] != b.shape[1] || a.shape[0]%uint64(l.Rank) != 0 {
			return nil, fault.New(fault.Unsupported, "the factors of %q have shapes %d and %d, and %s reads "+
				"factors of stacked experts as matrices", l.Module, a.shape, b.shape, s.title).WithHint(hintServed)
		}
		n = int(a.shape[0]) / l.Rank
		layer.experts = n
	}
	if l.Rank == s.rank {
		return layer, nil
	}
	var rows []int
	for e := range n {
		rows = append(rows, span(e*s.rank, l.Rank)...)
	}
	a.blocks = []block{{tensor: ia, times: 1, rows: span(0, n*l.Rank), to: rows}}
	b.blocks = []block{{tensor: ib, times: 1, rows: span(0, int(b.shape[0])), cols: span(0, n*l.Rank)}}
	a.shape = []uint64{uint64(n * s.rank), a.shape[1]}
	b.shape = []uint64{b.shape[0], uint64(n * s.rank)}
	return layer, nil
}

// span returns the numbers from first on.
func span(first, n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = first + i
	}
	return all
}
