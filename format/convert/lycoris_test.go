package convert_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
)

// TestMethodsOfLyCORIS: each method becomes the layer, or the differences, of spec/METHODS.md, with
// the scale of the forward pass of lycoris-lora.
func TestMethodsOfLyCORIS(t *testing.T) {
	q := func(tail string, shape ...uint64) testkit.Tensor {
		return zerosOf("lora_unet_q."+tail, dtype.F32, shape...)
	}
	n := func(tail string, x float64, shape ...uint64) testkit.Tensor {
		return testkit.Values("lora_unet_q."+tail, dtype.F32, shape, x)
	}
	lora := []testkit.Tensor{q("lora_down.weight", 2, 6), q("lora_up.weight", 4, 2), n("alpha", 1)}
	conv := []testkit.Tensor{q("lora_down.weight", 2, 6, 1, 1), q("lora_up.weight", 4, 2, 1, 1), n("alpha", 1)}
	with := func(pair []testkit.Tensor, more ...testkit.Tensor) []testkit.Tensor {
		return slices.Concat(pair, more)
	}
	loHa := []testkit.Tensor{
		q("hada_w1_a", 4, 2), q("hada_w1_b", 2, 6), q("hada_w2_a", 4, 2), q("hada_w2_b", 2, 6), n("alpha", 1),
	}
	for _, c := range []struct {
		layer    string // "" for none
		requires []string
		tensors  []testkit.Tensor
	}{
		{"hadamard r=2 ×0.5 alpha w1_a w1_b w2_a w2_b", []string{"hadamard lora_unet_q"}, loHa},
		{"hadamard r=2 ×1 t1 t2 w1_a w1_b w2_a w2_b", []string{"hadamard lora_unet_q"}, []testkit.Tensor{
			q("hada_w1_a", 2, 4), q("hada_w1_b", 2, 6), q("hada_t1", 2, 2, 3, 3),
			q("hada_w2_a", 2, 4), q("hada_w2_b", 2, 6), q("hada_t2", 2, 2, 3, 3)}},
		{"hadamard r=2 ×0.5 alpha magnitude w1_a w1_b w2_a w2_b",
			[]string{"dora lora_unet_q", "hadamard lora_unet_q"}, with(loHa, q("dora_scale", 4, 1))},
		{"kronecker r=1 ×1 alpha w1 w2", []string{"kronecker lora_unet_q"}, // LyCORIS forgets alpha
			[]testkit.Tensor{q("lokr_w1", 2, 2), q("lokr_w2", 2, 3), n("alpha", 8)}},
		{"kronecker r=3 ×2 alpha w1 w2_a w2_b", []string{"kronecker lora_unet_q"},
			[]testkit.Tensor{q("lokr_w1", 2, 2), q("lokr_w2_a", 2, 3), q("lokr_w2_b", 3, 3), n("alpha", 6, 1)}},
		{"kronecker r=2 ×2 alpha w1_a w1_b w2", []string{"kronecker lora_unet_q"}, []testkit.Tensor{
			q("lokr_w1_a", 2, 2), q("lokr_w1_b", 2, 2), q("lokr_w2", 2, 3, 3, 3), n("alpha", 4)}},
		{"kronecker r=5 ×0.2 alpha t2 w1 w2_a w2_b", []string{"kronecker lora_unet_q"}, []testkit.Tensor{
			q("lokr_w1", 2, 2), q("lokr_t2", 5, 5, 3, 3), q("lokr_w2_a", 5, 2), q("lokr_w2_b", 5, 3), n("alpha", 1)}},
		{"kronecker r=1 ×1 alpha input_magnitude w1 w2",
			[]string{"input-magnitude lora_unet_q", "kronecker lora_unet_q"},
			[]testkit.Tensor{q("lokr_w1", 2, 2), q("lokr_w2", 2, 3), n("alpha", 8), q("dora_scale", 1, 6)}},
		{"output-scaling r=1 ×1 axis vector", []string{"scaling lora_unet_q"},
			[]testkit.Tensor{n("on_input", 0), q("weight", 4)}},
		{"input-scaling r=1 ×1 axis vector", []string{"scaling lora_unet_q"},
			[]testkit.Tensor{n("on_input", 1), q("weight", 1, 6, 1, 1)}},
		{"conv r=2 ×0.5 A B alpha core", []string{"convolution lora_unet_q", "tucker lora_unet_q"},
			with(conv, q("lora_mid.weight", 2, 2, 3, 3))},
		{"linear r=2 ×0.5 A B alpha magnitude", []string{"dora lora_unet_q"},
			with(lora, q("dora_scale", 4, 1))},
		{"linear r=2 ×0.5 A B alpha magnitude", []string{"dora lora_unet_q"}, // as PEFT has it
			with(lora, q("dora_scale", 4))},
		{"linear r=2 ×0.5 A B alpha input_magnitude", []string{"input-magnitude lora_unet_q"},
			with(lora, q("dora_scale", 1, 6))},
		{"conv r=2 ×0.5 A B alpha input_magnitude",
			[]string{"convolution lora_unet_q", "input-magnitude lora_unet_q"},
			with(conv, q("dora_scale", 1, 6, 1, 1))},
		{"", []string{"difference lora_unet_q.bias", "difference lora_unet_q.weight"},
			[]testkit.Tensor{q("diff", 4, 6), q("diff_b", 4)}},
		{"", []string{"difference lora_unet_q.bias", "difference lora_unet_q.weight"},
			[]testkit.Tensor{q("w_norm", 4), q("b_norm", 4)}},
		{"linear r=2 ×0.5 A B alpha", []string{"difference lora_unet_q.bias"}, with(lora, q("diff_b", 4))},

		// What no layer can be.
		{"other r=1 ×1 alpha w1_a w1_b w2_a",
			[]string{"hadamard lora_unet_q", "missing-factor lora_unet_q: hada_w2_b"}, slices.Delete(slices.Clone(loHa), 3, 4)},
		{"hadamard r=2 ×0.5 alpha w1_a w1_b w2_a w2_b", []string{"hadamard lora_unet_q",
			"twice lora_unet_q.lokr_w1"}, with(loHa, q("lokr_w1", 2, 2))},
		{"other r=1 ×1 A alpha w1_a w1_b w2_a w2_b", []string{"hadamard lora_unet_q",
			"twice lora_unet_q, which also has factors of LoRA"}, with(loHa, q("lora_down.weight", 2, 6))},
		{"other r=1 ×1 alpha w2_b", []string{"kronecker lora_unet_q", "missing-factor lora_unet_q: lokr_w1, lokr_w2_a"},
			[]testkit.Tensor{q("lokr_w2_b", 1, 2), n("alpha", 1)}},
		{"other r=1 ×1 axis", []string{"missing-factor lora_unet_q: weight", "scaling lora_unet_q"},
			[]testkit.Tensor{n("on_input", 1)}},
		{"output-scaling r=1 ×1 axis vector", []string{"scaling lora_unet_q"}, // as a boolean
			[]testkit.Tensor{{Name: "lora_unet_q.on_input", DType: dtype.BOOL, Data: []byte{0}}, q("weight", 4)}},
		{"other r=1 ×1 alpha w1_a w1_b w2_a w2_b", []string{"factor-shape lora_unet_q: hada_w1_a [7 2], " +
			"hada_w1_b [2 6], hada_w2_a [4 2], hada_w2_b [2 6]", "hadamard lora_unet_q"},
			slices.Concat([]testkit.Tensor{q("hada_w1_a", 7, 2)}, loHa[1:])},
		{"other r=1 ×1 A B alpha core", []string{"convolution lora_unet_q", "factor-shape lora_unet_q: " +
			"lora_down.weight [2 6 1 1], lora_up.weight [4 2 1 1], lora_mid.weight [2 3 3 3]", "tucker lora_unet_q"},
			with(conv, q("lora_mid.weight", 2, 3, 3, 3))},
	} {
		path := write(t, nil, c.tensors...)
		src := open(t, path, convert.Options{})
		a := &src.Manifest().Adapters[0]
		layer := ""
		for _, l := range a.Layers {
			layer += fmt.Sprintf("%s r=%d ×%v", l.Kind, l.Rank, l.Scale())
			var roles []string
			for role := range l.Roles {
				roles = append(roles, " "+string(role))
			}
			slices.Sort(roles)
			for _, role := range roles {
				layer += role
			}
		}
		if layer != c.layer {
			t.Errorf("layer %q, want %q", layer, c.layer)
		}
		equalLines(t, c.layer+": requirements", requirements(src), c.requires)
		for _, b := range a.Beside {
			if b.Action != format.Difference && b.Action != format.Opaque {
				t.Errorf("%s: action %s", c.layer, b.Action)
			}
		}
		comesBack(t, path)
	}
}

// TestDifferencesHaveTheNamesOfTheModel: their targets are renamed as modules of layers are.
func TestDifferencesHaveTheNamesOfTheModel(t *testing.T) {
	const flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_"
	const module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1."
	path := write(t, nil,
		zerosOf(flat+"to_q.lora_down.weight", dtype.F32, 2, 4), zerosOf(flat+"to_q.lora_up.weight", dtype.F32, 4, 2),
		zerosOf(flat+"to_k.diff", dtype.F32, 4, 4), zerosOf(flat+"to_out_0.diff_b", dtype.F32, 4))
	src := open(t, path, convert.Options{})
	equalLines(t, "requirements", requirements(src), []string{
		"difference " + module + "to_k.weight", "difference " + module + "to_out.0.bias",
	})
	var targets []string
	for _, b := range src.Manifest().Adapters[0].Beside {
		targets = append(targets, b.Target)
	}
	slices.Sort(targets)
	equalLines(t, "targets", targets, []string{module + "to_k.weight", module + "to_out.0.bias"})
}

// TestAnAxisIsZeroOrOne.
func TestAnAxisIsZeroOrOne(t *testing.T) {
	path := write(t, nil, testkit.Values("lora_unet_q.on_input", dtype.F32, nil, 2),
		zerosOf("lora_unet_q.weight", dtype.F32, 4))
	_, err := convert.Open(t.Context(), path, convert.Options{})
	if err == nil || !strings.Contains(err.Error(), "lora_unet_q.on_input is 2, want 0 for outputs or 1 for inputs") {
		t.Errorf("error %v", err)
	}
}

// TestFilesOfLyCORISComeBack: a container restores every file that LyCORIS wrote, of methods
// without a kind as well.
func TestFilesOfLyCORISComeBack(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testdata, "lycoris", "*", "*.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range files {
		switch filepath.Base(filepath.Dir(path)) {
		case "adapters", "refused":
			comesBack(t, path)
			n++
		}
	}
	if n < 42 {
		t.Errorf("%d files, want 42 or more", n)
	}
}

// TestAFileBesideAPEFTConfigurationKeepsItsDialect: people keep the adapters of image models in one
// folder, and another program may have left PEFT's configuration there.
func TestAFileBesideAPEFTConfigurationKeepsItsDialect(t *testing.T) {
	path := write(t, nil, zerosOf("lora_unet_q.lora_down.weight", dtype.F32, 2, 4),
		zerosOf("lora_unet_q.lora_up.weight", dtype.F32, 4, 2), zerosOf("lora_unet_q.alpha", dtype.F32))
	config := filepath.Join(filepath.Dir(path), format.PEFTConfig)
	if err := os.WriteFile(config, []byte(`{"peft_type":"LORA","r":2,"lora_alpha":2,"target_modules":["q"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if a := open(t, path, convert.Options{}).Manifest().Adapters[0]; a.Dialect != "kohya" || len(a.Layers) != 1 {
		t.Errorf("dialect %s with %d layers, want kohya with 1", a.Dialect, len(a.Layers))
	}
}

// TestOddDifferencesAreWrittenOrRefused: a difference without dimensions or without elements is in
// no base, and a file of a stranger can hold one.
func TestOddDifferencesAreWrittenOrRefused(t *testing.T) {
	const flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q."
	for _, tensors := range [][]testkit.Tensor{
		{zerosOf(flat+"diff", dtype.F32)}, {zerosOf(flat+"diff_b", dtype.F32)},
		{zerosOf(flat+"diff", dtype.F32, 4, 0)}, {zerosOf(flat+"diff", dtype.F32, 0, 4)},
		{zerosOf(flat+"diff", dtype.F32, 4), zerosOf(flat+"diff_b", dtype.F32, 4)},
	} {
		path := write(t, nil, tensors...)
		for _, name := range []string{"kohya", "comfyui", "diffusers", "peft", "lora"} {
			var out output.Memory
			sink, err := convert.CreateTo(&out, convert.Default().Named(name), convert.CreateOptions{})
			if err == nil {
				err = format.Copy(t.Context(), sink, open(t, path, convert.Options{}))
			}
			var refused *format.Error
			if err != nil && !errors.As(err, &refused) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
