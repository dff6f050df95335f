package resolve_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// base is a base of BF16 tensors, by their names and shapes.
func base(modelType string, shapes map[string][]uint64) *resolve.Base {
	b := &resolve.Base{Path: "base", Tensors: make(map[string]resolve.Tensor), Config: config.Model{Found: modelType != "", ModelType: modelType}}
	for name, shape := range shapes {
		b.Tensors[name] = resolve.Tensor{DType: dtype.BF16, Shape: shape}
	}
	return b
}

// zeros is a matrix of zeros.
func zeros(shape ...uint64) format.Data {
	n := uint64(1)
	for _, d := range shape {
		n *= d
	}
	return format.Float32s(make([]float32, n), shape...)
}

// adapter makes an adapter in memory.
func adapter(t *testing.T, weight float64, build func(b *format.Builder)) resolve.Adapter {
	t.Helper()
	b := format.NewBuilder("made up")
	build(b)
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	return resolve.Adapter{Source: src, Name: "adapter", Weight: weight}
}

// resolveOne checks one adapter and pairs it with the base.
func resolveOne(b *resolve.Base, a resolve.Adapter, reading resolve.Reading) ([]*resolve.Change, []string, error) {
	checked, err := resolve.Check([]resolve.Adapter{a}, reading)
	if err != nil {
		return nil, nil, err
	}
	return resolve.Resolve(b, checked)
}

// describe is a change in one line: the place and the action.
func describe(c *resolve.Change) string {
	var s []string
	for _, x := range c.Terms {
		mark := ""
		if x.Transposed {
			mark = "ᵀ"
		}
		s = append(s, fmt.Sprintf("band %d rows %d+%d cols %d+%d: %v·BA%s of rank %d", x.Band, x.Left.First, x.Left.Length, x.Right.First, x.Right.Length, x.Scale, mark, x.Rank))
	}
	if c.Replace != nil {
		s = append(s, "replaced")
	}
	if c.Rows != nil {
		s = append(s, fmt.Sprintf("rows %d", c.Rows.Order))
	}
	return c.Name + ": " + strings.Join(s, "; ")
}

// described is a source that has a manifest and no data.
type described struct {
	format.Source
	manifest format.Manifest
}

func (d *described) Manifest() *format.Manifest { return &d.manifest }

// TestFactorsBeyond31Bits: a factor of 2³² elements has 2¹⁶ columns, on 32 bits too.
func TestFactorsBeyond31Bits(t *testing.T) {
	src := &described{manifest: format.Manifest{Tensors: []format.Tensor{{Shape: []uint64{1 << 16, 1 << 16}}}}}
	f := resolve.WholeA(resolve.Blob{Source: src}, 1<<16)
	if f.Length != 1<<16 || f.Across != 1<<16 {
		t.Errorf("WholeA of 2^16×2^16 has %d columns and steps of %d, want 65536 of both", f.Length, f.Across)
	}
}

// TestChangesAreRectanglesOfTheBase resolves adapters without a disk: which tensor, which rectangle
// of it, and the change there.
func TestChangesAreRectanglesOfTheBase(t *testing.T) {
	const r = 2
	for _, c := range []struct {
		name   string
		base   *resolve.Base
		weight float64
		build  func(b *format.Builder)
		want   []string
	}{
		{"a linear layer", base("", map[string][]uint64{"m.q.weight": {6, 4}}), 0.5,
			func(b *format.Builder) { b.Linear("m.q", r, 3, zeros(r, 4), zeros(6, r)) },
			[]string{"m.q.weight: band 0 rows 0+6 cols 0+4: 1.5·BA of rank 2"}},
		{"a weight that the base stores transposed", base("", map[string][]uint64{"m.q.weight": {4, 6}}), 1,
			func(b *format.Builder) { b.Linear("m.q", r, 1, zeros(r, 4), zeros(6, r)) },
			[]string{"m.q.weight: band 0 rows 0+4 cols 0+6: 1·BAᵀ of rank 2"}},
		{"a square weight of GPT-2", base("gpt2", map[string][]uint64{"h.0.attn.c_proj.weight": {4, 4}}), 1,
			func(b *format.Builder) { b.Linear("h.0.attn.c_proj", r, 1, zeros(r, 4), zeros(4, r)) },
			[]string{"h.0.attn.c_proj.weight: band 0 rows 0+4 cols 0+4: 1·BAᵀ of rank 2"}},
		{"a prefix that the base lacks", base("", map[string][]uint64{"layers.0.q.weight": {6, 4}}), 1,
			func(b *format.Builder) { b.Linear("model.layers.0.q", r, 1, zeros(r, 4), zeros(6, r)) },
			[]string{"layers.0.q.weight: band 0 rows 0+6 cols 0+4: 1·BA of rank 2"}},
		{"an embedding", base("", map[string][]uint64{"embed.weight": {9, 4}}), 1,
			func(b *format.Builder) { b.Embedding("embed", r, 1, zeros(r, 9), zeros(4, r)) },
			[]string{"embed.weight: band 0 rows 0+9 cols 0+4: 1·BAᵀ of rank 2"}},
		{"a convolution", base("", map[string][]uint64{"c.weight": {6, 4, 3, 3}}), 1,
			func(b *format.Builder) { b.Conv("c", r, 1, zeros(r, 4, 3, 3), zeros(6, r, 1, 1)) },
			[]string{"c.weight: band 0 rows 0+6 cols 0+36: 1·BA of rank 2"}},
		{"a convolution of kernel 1, as a linear layer", base("gpt2", map[string][]uint64{"h.0.c_proj.weight": {4, 4, 1, 1}}), 1,
			func(b *format.Builder) { b.Linear("h.0.c_proj", r, 1, zeros(r, 4), zeros(4, r)) },
			[]string{"h.0.c_proj.weight: band 0 rows 0+4 cols 0+4: 1·BA of rank 2"}},
		{"a linear layer, as a convolution of kernel 1", base("", map[string][]uint64{"c.weight": {6, 4}}), 1,
			func(b *format.Builder) { b.Conv("c", r, 1, zeros(r, 4, 1, 1), zeros(6, r, 1, 1)) },
			[]string{"c.weight: band 0 rows 0+6 cols 0+4: 1·BA of rank 2"}},
		{"a module of Flux, where the base divides it", base("", flux("transformer.", map[string][]uint64{
			"transformer_blocks.0.attn.to_q.weight": {4, 4}, "transformer_blocks.0.attn.to_k.weight": {4, 4}, "transformer_blocks.0.attn.to_v.weight": {4, 4},
		})), 1,
			func(b *format.Builder) {
				b.Linear("lora_unet_double_blocks_0_img_attn_qkv", r, 1, zeros(r, 4), zeros(12, r))
			},
			[]string{
				"transformer.transformer_blocks.0.attn.to_k.weight: band 0 rows 0+4 cols 0+4: 1·BA of rank 2",
				"transformer.transformer_blocks.0.attn.to_q.weight: band 0 rows 0+4 cols 0+4: 1·BA of rank 2",
				"transformer.transformer_blocks.0.attn.to_v.weight: band 0 rows 0+4 cols 0+4: 1·BA of rank 2",
			}},
		{"modules of Flux, where the base has one weight", base("", flux("", map[string][]uint64{
			"single_blocks.0.linear1.weight": {28, 4}, "single_blocks.0.linear2.weight": {4, 20},
		})), 1,
			func(b *format.Builder) {
				b.Linear("transformer.single_transformer_blocks.0.attn.to_v", r, 1, zeros(r, 4), zeros(4, r))
				b.Linear("transformer.single_transformer_blocks.0.proj_mlp", r, 1, zeros(r, 4), zeros(16, r))
			},
			[]string{"single_blocks.0.linear1.weight: band 0 rows 8+4 cols 0+4: 1·BA of rank 2; band 0 rows 12+16 cols 0+4: 1·BA of rank 2"}},
		{"one expert of a stack, the second half of its rows", base("qwen3_5_moe", map[string][]uint64{"l.0.mlp.experts.gate_up_proj": {3, 10, 4}}), 1,
			func(b *format.Builder) { b.Linear("l.0.mlp.experts.2.up_proj", r, 1, zeros(r, 4), zeros(5, r)) },
			[]string{"l.0.mlp.experts.gate_up_proj: band 2 rows 5+5 cols 0+4: 1·BA of rank 2"}},
		{"rows, and a tensor in place of the base's", base("", map[string][]uint64{"embed.weight": {9, 4}, "norm.weight": {4}}), 1,
			func(b *format.Builder) {
				b.Rows("embed.weight", []int64{8, 1}, zeros(2, 4))
				b.Replace("norm.weight", zeros(4))
			},
			[]string{"embed.weight: rows [8 1]", "norm.weight: replaced"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes, _, err := resolveOne(c.base, adapter(t, c.weight, c.build), resolve.Reading{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, change := range changes {
				got = append(got, describe(change))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("changes %q, want %q", got, c.want)
			}
		})
	}
}

// flux puts a prefix in front of the names of a Flux transformer.
func flux(prefix string, shapes map[string][]uint64) map[string][]uint64 {
	all := make(map[string][]uint64)
	for name, shape := range shapes {
		all[prefix+name] = shape
	}
	return all
}

// TestFactorsWithoutDimensionsFindNoPlace: a .lora file can hold a convolution of any shape.
func TestFactorsWithoutDimensionsFindNoPlace(t *testing.T) {
	a := adapter(t, 1, func(b *format.Builder) { b.Conv("lora_unet_conv_in", 1, 1, zeros(1, 1, 1), zeros(1, 1, 1)) })
	m := a.Source.Manifest()
	for i := range m.Tensors {
		m.Tensors[i].Shape = nil
	}
	_, _, err := resolveOne(base("", map[string][]uint64{"unet.conv_in.weight": {4, 3, 1, 1}}), a, resolve.Reading{})
	if !errors.Is(err, fault.Mismatch) {
		t.Errorf("got %v, want a refusal", err)
	}
}

// TestComponents: an adapter that changes a component which the base lacks is refused, and Only
// leaves out the layers of other components. An adapter with none of these is refused.
func TestComponents(t *testing.T) {
	both := adapter(t, 1, func(b *format.Builder) {
		b.Linear("unet.mid_block.proj", 2, 1, zeros(2, 4), zeros(6, 2))
		b.Linear("text_encoder.text_model.encoder.layers.0.mlp.fc1", 2, 1, zeros(2, 4), zeros(6, 2))
	})
	unet := base("", map[string][]uint64{"unet.mid_block.proj.weight": {6, 4}})
	for _, c := range []struct {
		only []string
		want string // in the error; "" if there is none
	}{
		{nil, "components that the base lacks: text_encoder"},
		{[]string{"unet"}, ""},
		{[]string{"transformer"}, ""}, // the denoiser under its other name
		{[]string{"text_encoder_2"}, "no layer of text_encoder_2; it has layers of text_encoder, unet"},
	} {
		changes, notes, err := resolveOne(unet, both, resolve.Reading{Only: c.only})
		if c.want != "" {
			if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("only %q: %v, want the words %q", c.only, err, c.want)
			}
			continue
		}
		if err != nil || len(changes) != 1 || changes[0].Name != "unet.mid_block.proj.weight" ||
			!slices.ContainsFunc(notes, func(note string) bool { return strings.Contains(note, "text_encoder.text_model") }) {
			t.Errorf("only %q: %v, %q, %v, want the U-Net's change and a note about the rest", c.only, changes, notes, err)
		}
	}
}

// TestAComponentThatIsNotRead: the weights are there, in a way that is not read.
func TestAComponentThatIsNotRead(t *testing.T) {
	b := base("", map[string][]uint64{"text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": {6, 4}})
	b.Unread = map[string]string{"unet": "unet/diffusion_pytorch_model.bin"}
	a := adapter(t, 1, func(b *format.Builder) { b.Linear("lora_unet_conv_in", 2, 1, zeros(2, 4), zeros(6, 2)) })
	_, _, err := resolveOne(b, a, resolve.Reading{})
	if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "unet/diffusion_pytorch_model.bin") {
		t.Errorf("got %v, want a refusal that names the file", err)
	}
}

// TestOnlyAsksWhereALayerLands: the names of an adapter need not say the component.
func TestOnlyAsksWhereALayerLands(t *testing.T) {
	pipeline := base("", map[string][]uint64{
		"unet.conv_in.weight": {6, 4}, "unet.mid_block.resnets.0.conv1.weight": {6, 4}, "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": {6, 4},
	})
	bare := adapter(t, 1, func(b *format.Builder) { b.Linear("mid_block.resnets.0.conv1", 2, 1, zeros(2, 4), zeros(6, 2)) })
	if changes, _, err := resolveOne(pipeline, bare, resolve.Reading{Only: []string{"unet"}}); err != nil || len(changes) != 1 {
		t.Errorf("only unet: %d changes, %v, want one", len(changes), err)
	}
	_, _, err := resolveOne(pipeline, bare, resolve.Reading{Only: []string{"text_encoder"}})
	if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "1 of the 1 modules that the adapter changes are not in text_encoder") {
		t.Errorf("only text_encoder: %v, want a refusal", err)
	}
}

// TestOneModuleInTwoNamespaces: two layers of an adapter that are one module under two names would
// both be added.
func TestOneModuleInTwoNamespaces(t *testing.T) {
	twice := adapter(t, 1, func(b *format.Builder) {
		b.Linear("lora_unet_input_blocks_1_1_proj_in", 2, 1, zeros(2, 4), zeros(4, 2))
		b.Linear("lora_unet_down_blocks_0_attentions_0_proj_in", 2, 1, zeros(2, 4), zeros(4, 2))
	})
	unet := base("", map[string][]uint64{"unet.down_blocks.0.attentions.0.proj_in.weight": {4, 4}})
	_, _, err := resolveOne(unet, twice, resolve.Reading{})
	if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "two layers of one adapter change the same elements") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// TestTiedEndsNeedAWord: of a base whose head is its embedding, a change of the head is refused;
// folded it changes the one tensor, and untied the base gets a head before.
func TestTiedEndsNeedAWord(t *testing.T) {
	yes := true
	tied := base("llama", map[string][]uint64{"model.embed_tokens.weight": {9, 4}, "model.layers.0.mlp.up_proj.weight": {8, 4}})
	tied.Config.TieWordEmbeddings, tied.Config.Architectures = &yes, []string{"LlamaForCausalLM"}
	tied.ConfigText = []byte(`{"tie_word_embeddings": true}`)
	head := adapter(t, 1, func(b *format.Builder) { b.Linear("lm_head", 2, 1, zeros(2, 4), zeros(9, 2)) })

	_, _, err := resolveOne(tied, head, resolve.Reading{})
	if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "tied") {
		t.Errorf("without a word: %v, want a refusal that says that the ends are tied", err)
	}
	changes, _, err := resolveOne(tied, head, resolve.Reading{Tied: resolve.Fold})
	if err != nil || len(changes) != 1 || changes[0].Name != "model.embed_tokens.weight" {
		t.Errorf("folded: %v, %v, want a change of the embedding", changes, err)
	}
	checked, err := resolve.Check([]resolve.Adapter{head}, resolve.Reading{Tied: resolve.Untie})
	if err != nil {
		t.Fatal(err)
	}
	shaped, err := resolve.Shape(tied, checked, resolve.Shaping{Untie: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(shaped.ConfigText), `{"tie_word_embeddings": false}`; got != want {
		t.Errorf("untied: config.json is %s, want %s", got, want)
	}
	changes, _, err = resolveOne(shaped.Base, head, resolve.Reading{Tied: resolve.Untie})
	if err != nil || len(changes) != 1 || changes[0].Name != "lm_head.weight" {
		t.Errorf("untied: %v, %v, want a change of the head", changes, err)
	}
	if _, ok := tied.Tensors["lm_head.weight"]; ok {
		t.Error("Shape has changed the base that it was given")
	}
}

// TestAnEndInANumberedModuleIsSeen: the embedding of some models is the first of their numbered
// modules, known by its name, or because the adapter looks tokens up in it.
func TestAnEndInANumberedModuleIsSeen(t *testing.T) {
	yes := true
	for name, build := range map[string]func(b *format.Builder, module string){
		"layers.0.wte":   func(b *format.Builder, m string) { b.Replace(m+".weight", zeros(9, 4)) },
		"layers.0.table": func(b *format.Builder, m string) { b.Embedding(m, 2, 1, zeros(2, 9), zeros(4, 2)) },
	} {
		tied := base("phi", map[string][]uint64{name + ".weight": {9, 4}, "layers.1.mlp.fc1.weight": {8, 4}})
		tied.Config.TieWordEmbeddings, tied.Config.Architectures = &yes, []string{"PhiForCausalLM"}
		a := adapter(t, 1, func(b *format.Builder) { build(b, name) })
		if _, _, err := resolveOne(tied, a, resolve.Reading{}); !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "tied") {
			t.Errorf("%s: %v, want a refusal that says that the ends are tied", name, err)
		}
	}
}

// TestResolvingLeavesItsInputsAlone: the same inputs give the same changes any number of times.
func TestResolvingLeavesItsInputsAlone(t *testing.T) {
	b := base("", map[string][]uint64{"m.q.weight": {6, 4}, "m.k.weight": {4, 6}})
	a := adapter(t, 1, func(b *format.Builder) {
		b.Linear("m.q", 2, 1, zeros(2, 4), zeros(6, 2))
		b.Linear("m.k", 2, 1, zeros(2, 4), zeros(6, 2))
	})
	var first []string
	for range 3 {
		changes, _, err := resolveOne(b, a, resolve.Reading{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range changes {
			got = append(got, describe(c))
		}
		if first == nil {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Errorf("again: %q, first %q", got, first)
		}
	}
}

// squareExperts adds a layer of three square experts.
func squareExperts(kind format.Kind) func(b *format.Builder) {
	return func(b *format.Builder) {
		const r = 2
		b.Linear("m.experts", 3*r, 1, zeros(3*r, 4), zeros(4, 3*r))
		l := &b.Adapter().Layers[0]
		l.Kind, l.Rank = kind, r
		b.Require(format.FeatureExperts, "m.experts.down_proj")
	}
}

// TestNoFormulaOfExpertsHasMoreThanFactors: a bias or magnitudes of a layer whose formula has A and
// B alone are refused, as a base cannot get them.
func TestNoFormulaOfExpertsHasMoreThanFactors(t *testing.T) {
	const r = 2
	stacked := base("mixtral", map[string][]uint64{"m.experts.down_proj": {3, 6, 4}})
	fused := base("", map[string][]uint64{"q.weight": {6, 4}})
	experts := func(b *format.Builder) *format.LayerBuilder {
		l := b.Linear("m.experts", 3*r, 1, zeros(3*r, 4), zeros(6, 3*r))
		b.Adapter().Layers[0].Kind, b.Adapter().Layers[0].Rank = format.Expert, r
		b.Require(format.FeatureExperts, "m.experts.down_proj")
		return l
	}
	compact := func(b *format.Builder) *format.LayerBuilder {
		l := b.Linear("q", r, 1, zeros(r, 4), zeros(6, r))
		b.Adapter().Layers[0].Kind = format.Other
		b.Require(format.FeatureBDLoRA, "use_bdlora")
		return l
	}
	for _, c := range []struct {
		name  string
		base  *resolve.Base
		layer func(b *format.Builder) *format.LayerBuilder
	}{{"stacked experts", stacked, experts}, {"compact factors", fused, compact}} {
		plain := func(b *format.Builder) { c.layer(b) }
		if _, _, err := resolveOne(c.base, adapter(t, 1, plain), resolve.Reading{}); err != nil {
			t.Errorf("%s alone: %v", c.name, err)
		}
		for what, build := range map[string]func(b *format.Builder){
			"a bias":     func(b *format.Builder) { c.layer(b).Bias(zeros(6)) },
			"magnitudes": func(b *format.Builder) { c.layer(b).Magnitude(zeros(6)) },
			"DoRA for all layers": func(b *format.Builder) {
				c.layer(b)
				b.Require(format.FeatureDoRA, "use_dora")
			},
		} {
			_, _, err := resolveOne(c.base, adapter(t, 1, build), resolve.Reading{})
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "beside lora_A and lora_B") {
				t.Errorf("%s with %s: %v, want a refusal", c.name, what, err)
			}
		}
	}
}

// TestTwoLayersOfAnAdapterChangeNoElementTwice: two names of one module are refused, two parts of
// one expert are not.
func TestTwoLayersOfAnAdapterChangeNoElementTwice(t *testing.T) {
	const r = 2
	layers := func(modules ...string) func(b *format.Builder) {
		return func(b *format.Builder) {
			for _, m := range modules {
				b.Linear(m, r, 1, zeros(r, 4), zeros(6, r))
			}
		}
	}
	attention := base("", map[string][]uint64{"attn.in_proj_weight": {18, 4}, "attn.out_proj.weight": {6, 4}})
	stacked := base("qwen3_moe", map[string][]uint64{"experts.gate_up_proj": {3, 12, 4}})
	for _, c := range []struct {
		name  string
		base  *resolve.Base
		build func(b *format.Builder)
		ok    bool
	}{
		{"out_proj with PEFT's wrapper and without", attention, layers("attn.base_layer.out_proj", "attn.out_proj"), false},
		{"one number of an expert, written in two ways", stacked, layers("experts.01.up_proj", "experts.1.up_proj"), false},
		{"both parts of experts", stacked, layers("experts.0.gate_proj", "experts.0.up_proj", "experts.1.up_proj"), true},
	} {
		_, _, err := resolveOne(c.base, adapter(t, 1, c.build), resolve.Reading{})
		switch {
		case c.ok && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !c.ok && (!errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), "change the same elements")):
			t.Errorf("%s: %v, want a refusal", c.name, err)
		}
	}
}

// dimensionRead is the dimension that A reads, or "no" for a refusal that names the option.
func dimensionRead(t *testing.T, changes []*resolve.Change, err error, option string) string {
	t.Helper()
	switch {
	case errors.Is(err, fault.Unsupported) && strings.Contains(fault.Hint(err), option):
		return "no"
	case err != nil:
		t.Fatal(err)
	case changes[0].Terms[0].Transposed:
		return "first"
	}
	return "second"
}

// TestSquareExpertsAreReadAsTheirKindSays: the kind and the base decide, and the user before both.
// Resolve refuses everything that they leave open.
func TestSquareExpertsAreReadAsTheirKindSays(t *testing.T) {
	type answers map[string]string // by model type: A reads the first or the second dimension, or it is refused
	for kind, want := range map[format.Kind]answers{
		format.Expert:        {"": "no", "mixtral": "no", "gpt_oss": "no", "qwen3_vl_moe": "no"},
		format.ExpertInputs:  {"": "no", "mixtral": "second", "gpt_oss": "no", "qwen3_vl_moe": "no"},
		format.ExpertOutputs: {"": "no", "mixtral": "first", "gpt_oss": "no", "qwen3_vl_moe": "no"},
		format.ExpertFirst:   {"": "first", "mixtral": "first", "gpt_oss": "first", "qwen3_vl_moe": "no"},
		format.ExpertSecond:  {"": "second", "mixtral": "second", "gpt_oss": "second", "qwen3_vl_moe": "second"},
	} {
		for modelType, answer := range want {
			b := base(modelType, map[string][]uint64{"m.experts.down_proj": {3, 4, 4}})
			for input, forced := range []string{answer, "first", "second"} {
				changes, _, err := resolveOne(b, adapter(t, 1, squareExperts(kind)), resolve.Reading{ExpertInput: input})
				if got := dimensionRead(t, changes, err, "Options.ExpertInput"); got != forced {
					t.Errorf("%s into %q with ExpertInput %d: %s, want %s", kind, modelType, input, got, forced)
				}
			}
		}
	}
}

// TestAWordOfTheAdapterDoesNotOrientSquareWeights: only its orientation would tell how the base
// stores the weight, and the content id does not cover that.
func TestAWordOfTheAdapterDoesNotOrientSquareWeights(t *testing.T) {
	square := map[string][]uint64{"h.0.attn.c_proj.weight": {4, 4}}
	for _, c := range []struct {
		orientation format.Orientation
		base        *resolve.Base
		input       int
		want        string
	}{
		{format.NxM, base("", square), 0, "no"},
		{format.NxM, base("", square), 1, "first"},
		{format.NxM, base("", square), 2, "second"},
		{format.MxN, base("", square), 0, "second"},
		{format.MxN, base("", square), 1, "first"},
		{format.NxM, base("gpt2", square), 0, "first"},
		{format.MxN, base("gpt2", square), 0, "first"},
		{format.NxM, base("llama", square), 0, "second"},
	} {
		a := adapter(t, 1, func(b *format.Builder) {
			b.Linear("h.0.attn.c_proj", 2, 1, zeros(2, 4), zeros(4, 2))
			b.Adapter().Orientation = c.orientation
		})
		changes, _, err := resolveOne(c.base, a, resolve.Reading{LinearInput: c.input})
		if got := dimensionRead(t, changes, err, "Options.LinearInput"); got != c.want {
			t.Errorf("orientation %q, model type %q, LinearInput %d: %s, want %s", c.orientation, c.base.Config.ModelType, c.input, got, c.want)
		}
	}
}

// TestWhyABaseLacksWhatAnAdapterChanges: the names and shapes of the base hold the reason.
func TestWhyABaseLacksWhatAnAdapterChanges(t *testing.T) {
	const r = 2
	q := map[string][]uint64{"model.layers.0.q_proj.weight": {6, 4}}
	for _, c := range []struct {
		name  string
		base  *resolve.Base
		build func(b *format.Builder)
		want  string
	}{
		{"an update of a head that another class has", base("llama", q), func(b *format.Builder) {
			b.Linear("model.layers.0.q_proj", r, 1, zeros(r, 4), zeros(6, r))
			b.Linear("classifier", r, 1, zeros(r, 4), zeros(3, r))
		}, "updates a head that the base lacks"},
		{"an expert beyond the stack", base("qwen3_5_moe", map[string][]uint64{"l.0.mlp.experts.down_proj": {3, 6, 4}}),
			func(b *format.Builder) { b.Linear("l.0.mlp.experts.3.down_proj", r, 1, zeros(r, 4), zeros(6, r)) },
			"stacks 3 experts, but the adapter changes number 3"},
	} {
		_, _, err := resolveOne(c.base, adapter(t, 1, c.build), resolve.Reading{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want the words %q", c.name, err, c.want)
		}
	}
}

// TestARecordRemembersEveryField: a field that a record forgot would be zero for the removal, which
// then took out another update than the merge put in.
func TestARecordRemembersEveryField(t *testing.T) {
	for i := range reflect.TypeFor[resolve.Reading]().NumField() {
		var r resolve.Reading
		switch f := reflect.ValueOf(&r).Elem().Field(i); f.Kind() {
		case reflect.Int:
			f.SetInt(2)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.String:
			f.SetString("fold")
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"unet", "text_encoder"}))
		}
		texts := r.Texts()
		if len(texts) != 1 {
			t.Errorf("%+v has the texts %v, want one", r, texts)
		}
		if got, err := resolve.ReadingOf(texts); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("ReadingOf(%v) = %+v, %v, want %+v", texts, got, err, r)
		}
	}
}
