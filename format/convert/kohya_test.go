package convert_test

import (
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
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// zerosOf returns a tensor of zeros.
func zerosOf(name string, d dtype.Type, shape ...uint64) testkit.Tensor {
	n, _ := dtype.NElements(shape)
	return testkit.Values(name, d, shape, make([]float64, n)...)
}

// write writes a safetensors file into a new directory and returns its path.
func write(t *testing.T, metadata map[string]string, tensors ...testkit.Tensor) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.safetensors")
	testkit.Write(t, path, testkit.Encode(metadata, tensors...))
	return path
}

// open opens an adapter, which is closed at the end of the test.
func open(t *testing.T, path string, o convert.Options) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// refuses opens a path and wants an error with some words in its text or hint.
func refuses(t *testing.T, path string, o convert.Options, words ...string) {
	t.Helper()
	_, err := convert.Open(t.Context(), path, o)
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error()+"\n"+fault.Hint(err), word) {
			t.Errorf("Open(%s) = %v (hint: %s), want %q", path, err, fault.Hint(err), word)
		}
	}
}

// layersOf describes the layers of a source: module, kind, shapes of A and B, scale.
func layersOf(src format.Source) (lines []string) {
	m := src.Manifest()
	for _, l := range m.Adapters[0].Layers {
		line := fmt.Sprintf("%s %s", l.Module, l.Kind)
		for _, role := range []format.Role{format.RoleA, format.RoleB} {
			if i, ok := l.Roles[role]; ok {
				line += fmt.Sprintf(" %d", m.Tensors[i].Shape)
			}
		}
		lines = append(lines, fmt.Sprintf("%s ×%v", line, l.Scale()))
	}
	return lines
}

// requirements describes what a source requires.
func requirements(src format.Source) (lines []string) {
	for _, q := range src.Manifest().Adapters[0].Requires {
		lines = append(lines, string(q.Feature)+" "+q.Where)
	}
	return lines
}

func equalLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestKohyasLayers: ranks and alphas of each module, alphas of zero dimensions, of one, as integers
// and missing, convolutions of each size, and dotted names.
func TestKohyasLayers(t *testing.T) {
	path := write(t, map[string]string{"ss_network_module": "networks.lora",
		"ss_base_model_version": "sd_v1"},
		zerosOf("lora_unet_x_proj_in.lora_down.weight", dtype.F16, 4, 6, 1, 1),
		zerosOf("lora_unet_x_proj_in.lora_up.weight", dtype.F16, 8, 4, 1, 1),
		testkit.Values("lora_unet_x_proj_in.alpha", dtype.F16, []uint64{}, 1),
		zerosOf("lora_unet_x_conv1.lora_down.weight", dtype.BF16, 2, 6, 3, 3),
		zerosOf("lora_unet_x_conv1.lora_up.weight", dtype.BF16, 8, 2, 1, 1),
		testkit.Values("lora_unet_x_conv1.alpha", dtype.BF16, []uint64{1}, 13.375),
		zerosOf("lora_te1_x_fc1.lora_down.weight", dtype.F32, 2, 6),
		zerosOf("lora_te1_x_fc1.lora_up.weight", dtype.F32, 8, 2),
		zerosOf("lora_unet__blocks_0_q.lora_down.weight", dtype.F32, 2, 6),
		zerosOf("lora_unet__blocks_0_q.lora_up.weight", dtype.F32, 6, 2),
		testkit.Tensor{Name: "lora_unet__blocks_0_q.alpha", DType: dtype.I64, Shape: []uint64{},
			Data: []byte{6, 0, 0, 0, 0, 0, 0, 0}},
		zerosOf("blocks.1.q.lora_down.weight", dtype.F32, 2, 6),
		zerosOf("blocks.1.q.lora_up.weight", dtype.F32, 6, 2),
		testkit.Values("blocks.1.q.alpha", dtype.F64, []uint64{}, 0.1),
	)
	src := open(t, path, convert.Options{})
	equalLines(t, "layers", layersOf(src), []string{
		"blocks.1.q linear [2 6] [6 2] ×0.05",
		"lora_te1_x_fc1 linear [2 6] [8 2] ×1",
		"lora_unet__blocks_0_q linear [2 6] [6 2] ×3",
		"lora_unet_x_conv1 conv [2 6 3 3] [8 2 1 1] ×6.6875",
		"lora_unet_x_proj_in conv [4 6 1 1] [8 4 1 1] ×0.25",
	})
	equalLines(t, "requirements", requirements(src), []string{
		"convolution lora_unet_x_conv1", "convolution lora_unet_x_proj_in",
	})
	a := &src.Manifest().Adapters[0]
	if a.Dialect != "kohya" || a.Base.Name != "sd_v1" || a.Method != format.MethodLoRA {
		t.Errorf("dialect %q, base %q, method %q", a.Dialect, a.Base.Name, a.Method)
	}
	sign := convert.RecognisedBy(src)
	for _, want := range []string{"lora_", ".lora_", "ss_network_module = networks.lora"} {
		if !strings.Contains(sign, want) {
			t.Errorf("RecognisedBy = %q, want %q in it", sign, want)
		}
	}
	comesBack(t, path)
}

// comesBack converts a file to a container and restores it, and compares the bytes.
func comesBack(t *testing.T, path string) {
	t.Helper()
	comesBackWith(t, path, convert.Options{})
}

func comesBackWith(t *testing.T, path string, o convert.Options) {
	t.Helper()
	src, err := convert.OpenDigested(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	container := filepath.Join(t.TempDir(), "a.lora")
	store(t, container, convert.LoRA(), src)
	lora := open(t, container, convert.Options{})
	var back strings.Builder
	if err := convert.Restore(t.Context(), &back, lora, 0); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil || back.String() != string(want) {
		t.Errorf("%s does not come back byte for byte (%v)", filepath.Base(path), err)
	}
	equalLines(t, "layers of the container", layersOf(lora), layersOf(src))
	equalLines(t, "requirements of the container", requirements(lora), requirements(src))
}

// TestOpaqueMethodsAreNamed: a method without a kind becomes a requirement with its name, and its
// tensors are carried.
func TestOpaqueMethodsAreNamed(t *testing.T) {
	q := func(tail string, shape ...uint64) testkit.Tensor {
		return zerosOf("lora_unet_q."+tail, dtype.F32, shape...)
	}
	pair := []testkit.Tensor{q("lora_down.weight", 2, 4, 1, 1), q("lora_up.weight", 4, 2, 1, 1),
		q("alpha")}
	for _, c := range []struct {
		want    string
		layers  int
		tensors []testkit.Tensor
	}{
		{"lycoris OFT", 0, []testkit.Tensor{q("oft_blocks", 2, 2, 2), q("alpha")}},
		{"lycoris BOFT", 0, []testkit.Tensor{q("oft_blocks", 2, 2, 2, 2), q("rescale", 4, 1)}},
		{"lycoris GLoRA", 0, []testkit.Tensor{q("a1.weight", 2, 4), q("a2.weight", 4, 2),
			q("b1.weight", 4, 2), q("b2.weight", 2, 4)}},
		{"lycoris T-LoRA", 0, []testkit.Tensor{q("q_layer.weight", 2, 4), q("p_layer.weight", 4, 2),
			q("lambda_layer", 1, 2), q("alpha")}},
		{"lycoris sparse differences", 1, append([]testkit.Tensor{q("bias_indices", 2, 3),
			q("bias_values", 3), q("bias_size", 2)}, pair...)},
		{"set-tensor lora_unet_q.set_weight", 1, append([]testkit.Tensor{q("set_weight", 4)},
			pair...)},
		{"textual-inversion bundle_emb.cat", 1,
			append([]testkit.Tensor{zerosOf("bundle_emb.cat.string_to_param.*", dtype.F32, 2, 8)},
				pair...)},
		{"textual-inversion emb_params", 1,
			append([]testkit.Tensor{zerosOf("emb_params", dtype.F32, 2, 8)}, pair...)},
		{"unknown-tensor lora_unet_q.lora_sideways", 1, append([]testkit.Tensor{q("lora_sideways",
			4)}, pair...)},
		{"missing-factor lora_unet_q: B", 1, pair[:1]},
		{"missing-factor lora_unet_q: A", 1, pair[1:]},
		{"missing-factor lora_unet_k: only alpha", 1, append(pair[:3:3],
			zerosOf("lora_unet_k.alpha", dtype.F32))},
		{"factor-shape lora_unet_q: A [2 4], B [4 3]", 1, []testkit.Tensor{q("lora_down.weight",
			2, 4), q("lora_up.weight", 4, 3)}},
		{"factor-shape lora_unet_q: A [2 4 3 3], B [4 2]", 1,
			[]testkit.Tensor{q("lora_down.weight", 2, 4, 3, 3), q("lora_up.weight", 4, 2)}},
		{"twice lora_unet_q.lora_up.weight", 1, append([]testkit.Tensor{q("lora_B.weight", 4, 2)},
			pair...)},
	} {
		path := write(t, nil, c.tensors...)
		src := open(t, path, convert.Options{})
		is := func(q string) bool { return strings.HasPrefix(q, c.want) }
		got, n := requirements(src), len(src.Manifest().Adapters[0].Layers)
		if !slices.ContainsFunc(got, is) || n != c.layers {
			t.Errorf("%s: requirements %q, %d layers", c.want, got, n)
		}
		comesBack(t, path)
	}
}

// TestASignOfTheDialectIsShort, however long the entry of the header is that gives it.
func TestASignOfTheDialectIsShort(t *testing.T) {
	pair := factors("lora_unet_q", "lora_down.weight", "lora_up.weight", 2)
	for module, want := range map[string]string{
		"lycoris.kohya":              ", and ss_network_module = lycoris.kohya in the header",
		strings.Repeat("x", 1<<20):   "",
		"networks.lora\x1b[2J\nnext": "",
	} {
		src := open(t, write(t, map[string]string{"ss_network_module": module}, pair...),
			convert.Options{})
		sign := convert.RecognisedBy(src)
		if _, got, _ := strings.Cut(sign, ".weight"); got != want {
			t.Errorf("ss_network_module %.20q: the sign is %.80q, want the key and %q", module, sign,
				want)
		}
	}
}

// TestAnAlphaMustBeANumber.
func TestAnAlphaMustBeANumber(t *testing.T) {
	nan := []byte{0, 0, 0xc0, 0x7f}
	for _, alpha := range []testkit.Tensor{
		{Name: "lora_unet_q.alpha", DType: dtype.F32, Shape: []uint64{}, Data: nan},
		zerosOf("lora_unet_q.alpha", dtype.F32, 2),
		{Name: "lora_unet_q.alpha", DType: dtype.BOOL, Shape: []uint64{}, Data: []byte{1}},
	} {
		pair := factors("lora_unet_q", "lora_down.weight", "lora_up.weight", 2)
		refuses(t, write(t, nil, append(pair, alpha)...), convert.Options{}, "lora_unet_q.alpha")
	}
}

// TestTheUserGivesTheScale that the file does not say, and no other.
func TestTheUserGivesTheScale(t *testing.T) {
	pair := factors("lora_unet_q", "lora_down.weight", "lora_up.weight", 2)
	alone := write(t, nil, pair...)
	alpha := testkit.Values("lora_unet_q.alpha", dtype.F32, []uint64{}, 1)
	said := write(t, nil, append(pair, alpha)...)
	for _, c := range []struct {
		options convert.Options
		scale   float64
	}{
		{convert.Options{}, 1}, {convert.Options{Alpha: 8}, 4}, {convert.Options{Scale: 0.3}, 0.3},
	} {
		src := open(t, alone, c.options)
		if got := src.Manifest().Adapters[0].Layers[0].Scale(); got != c.scale {
			t.Errorf("%+v: scale %v, want %v", c.options, got, c.scale)
		}
	}
	for _, path := range []string{said, filepath.Join(testdata, "demo/adapter-r8")} {
		for _, o := range []convert.Options{{Alpha: 8}, {Scale: 0.3}} {
			refuses(t, path, o, "says it")
		}
	}
}

// TestKohyasKeysBesideAConfigurationOfPEFT: neither is guessed, and the user may choose.
func TestKohyasKeysBesideAConfigurationOfPEFT(t *testing.T) {
	path := write(t, nil, zerosOf("lora_te_q.lora_down.weight", dtype.F32, 2, 4),
		zerosOf("lora_te_q.lora_up.weight", dtype.F32, 4, 2))
	config := []byte(`{"peft_type":"LORA","r":2,"lora_alpha":4}`)
	testkit.Write(t, filepath.Join(filepath.Dir(path), "adapter_config.json"), config)
	refuses(t, path, convert.Options{}, "sd-scripts", "Options.From=kohya")
	src := open(t, path, convert.Options{From: "kohya"})
	equalLines(t, "layers", layersOf(src), []string{"lora_te_q linear [2 4] [4 2] ×1"})
}

// TestTheUserNamesTheDialect where the keys are of no dialect that is known by them.
func TestTheUserNamesTheDialect(t *testing.T) {
	path := write(t, nil, zerosOf("q.lora_A", dtype.F32, 2, 4), zerosOf("q.lora_B", dtype.F32, 4,
		2))
	if _, err := convert.Open(t.Context(), path, convert.Options{}); err == nil {
		t.Error("loralib's keys were opened without a dialect")
	}
	src := open(t, path, convert.Options{From: "kohya"})
	equalLines(t, "layers", layersOf(src), []string{"q linear [2 4] [4 2] ×1"})
	refuses(t, path, convert.Options{From: "khoya"}, "kohya")
	if _, err := convert.CreateTo(new(output.Memory), convert.XLabs(),
		convert.CreateOptions{}); err == nil ||
		!strings.Contains(err.Error(), "xlabs cannot be written") {
		t.Errorf("CreateTo = %v", err)
	}
}

// TestFlatNamesOfKnownArchitectures: all names of a part of a model become dotted, or none.
func TestFlatNamesOfKnownArchitectures(t *testing.T) {
	pair := func(modules ...string) (tensors []testkit.Tensor) {
		for _, m := range modules {
			tensors = append(tensors, factors(m, "lora_down.weight", "lora_up.weight", 2)...)
		}
		return tensors
	}
	for _, c := range []struct{ flat, want []string }{
		{[]string{"lora_unet_double_blocks_3_img_attn_qkv",
			"lora_unet_single_blocks_37_modulation_lin"},
			[]string{"transformer.double_blocks.3.img_attn.qkv",
				"transformer.single_blocks.37.modulation.lin"}},
		{[]string{"lora_transformer_single_transformer_blocks_0_attn_to_q"},
			[]string{"transformer.single_transformer_blocks.0.attn.to_q"}},
		{[]string{"lora_unet__double_blocks_0_img_mlp_0"},
			[]string{"transformer.double_blocks.0.img_mlp.0"}},
		{[]string{"lora_unet_down_blocks_0_attentions_1_proj_in",
			"lora_unet_up_blocks_1_upsamplers_0_conv"},
			[]string{"unet.down_blocks.0.attentions.1.proj_in",
				"unet.up_blocks.1.upsamplers.0.conv"}},
		{[]string{"lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
			"lora_te2_text_model_encoder_layers_31_mlp_fc1"},
			[]string{"text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
				"text_encoder_2.text_model.encoder.layers.31.mlp.fc1"}},
		{[]string{"lora_te3_encoder_block_0_layer_0_SelfAttention_k",
			"lora_unet_joint_blocks_0_x_block_attn_qkv"},
			[]string{"text_encoder_3.encoder.block.0.layer.0.SelfAttention.k",
				"transformer.joint_blocks.0.x_block.attn.qkv"}},
		{[]string{"lora_te3_encoder_block_0_layer_0_SelfAttention_k",
			"lora_unet_double_blocks_0_img_mlp_0"},
			[]string{"text_encoder_2.encoder.block.0.layer.0.SelfAttention.k",
				"transformer.double_blocks.0.img_mlp.0"}},
		{[]string{"lora_unet_double_blocks_0_img_attn_qkv"},
			// Flux has img_attn.qkv, HunyuanVideo img_attn_qkv
			[]string{"lora_unet_double_blocks_0_img_attn_qkv"}},
		{[]string{"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"},
			[]string{"unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q"}},
		{[]string{"lora_unet_double_blocks_3_img_attn_qkv", "lora_unet_nowhere"},
			[]string{"lora_unet_double_blocks_3_img_attn_qkv", "lora_unet_nowhere"}},
		{[]string{"lora_unet_double_blocks_3_img_attn_qkv",
			"lora_unet__double_blocks_3_img_attn_qkv"},
			[]string{"lora_unet__double_blocks_3_img_attn_qkv",
				"lora_unet_double_blocks_3_img_attn_qkv"}},
		{[]string{"lora_unet_blocks_0_attn_gate", "lora_prior_te_x"}, []string{"lora_prior_te_x",
			"lora_unet_blocks_0_attn_gate"}},
	} {
		path := write(t, nil, pair(c.flat...)...)
		var got []string
		for _, l := range open(t, path, convert.Options{}).Manifest().Adapters[0].Layers {
			got = append(got, l.Module)
		}
		equalLines(t, c.flat[0], got, c.want)
		comesBack(t, path)
	}
}

// TestAnAlphaThatIsMissingAlone: the other layers have one, so the rule is said, and the user can
// fill it in.
func TestAnAlphaThatIsMissingAlone(t *testing.T) {
	tensors := append(factors("lora_unet_x_q", "lora_down.weight", "lora_up.weight", 2),
		factors("lora_unet_x_k", "lora_down.weight", "lora_up.weight", 2)...)
	tensors = append(tensors, testkit.Values("lora_unet_x_q.alpha", dtype.F32, nil, 1))
	path := write(t, nil, tensors...)
	src := open(t, path, convert.Options{})
	notes := strings.Join(src.Manifest().Notes, "\n")
	if want := `1 of 2 layers has no alpha, unlike the others`; !strings.Contains(notes, want) || !strings.Contains(notes, "lora_unet_x_k") {
		t.Errorf("notes %q, want %q and the layer", notes, want)
	}
	src = open(t, path, convert.Options{Alpha: 3})
	equalLines(t, "with an alpha for the rest", layersOf(src), []string{
		"lora_unet_x_k linear [2 4] [6 2] ×1.5", "lora_unet_x_q linear [2 4] [6 2] ×0.5",
	})
}

// TestAModuleUnderTwoNames: a flat name and a dotted one that are the same module stay apart, and
// merge refuses the two.
func TestAModuleUnderTwoNames(t *testing.T) {
	path := write(t, nil, append(factors("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_down.weight", "lora_up.weight", 2),
		factors("unet.down_blocks.0.attentions.0.proj_in", "lora_down.weight", "lora_up.weight", 2)...)...)
	for _, dialect := range []string{"", "kohya", "diffusers", "comfyui"} {
		src := open(t, path, convert.Options{From: dialect})
		equalLines(t, "requirements from "+dialect, requirements(src), []string{
			"twice lora_unet_down_blocks_0_attentions_0_proj_in, which is unet.down_blocks.0.attentions.0.proj_in",
		})
	}
	comesBack(t, path)
}
