package convert_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/safetensors"
)

const mlxData = "../../testdata/mlx"

// mlxFiles writes a source in the dialect and returns the files.
func mlxFiles(t *testing.T, src format.Source, o convert.CreateOptions) map[string][]byte {
	t.Helper()
	var out output.Memory
	sink, err := convert.CreateTo(&out, convert.MLX(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		t.Fatal(err)
	}
	return out.Files()
}

func openPath(t *testing.T, path string) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// reopened opens files that were written to memory.
func reopened(t *testing.T, files map[string][]byte) format.Source {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return openPath(t, dir)
}

// tensorTexts lists the tensors of a safetensors file with their bytes.
func tensorTexts(t *testing.T, file []byte) map[string]string {
	t.Helper()
	h, err := safetensors.Read(t.Context(), bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, x := range h.Tensors {
		all[x.Name] = fmt.Sprintf("%v %d %x", x.DType, x.Shape, file[x.Off:][:x.NBytes])
	}
	return all
}

// TestMLXComesBack: a directory that mlx-lm wrote, read and written again, has the same tensors,
// also through a container. testdata/mlx/make.py check has mlx-lm load such directories.
func TestMLXComesBack(t *testing.T) {
	for name, config := range map[string]string{
		"llama":     `{"fine_tune_type":"lora","lora_parameters":{"dropout":0,"keys":["mlp.down_proj","mlp.gate_proj","mlp.up_proj","self_attn.k_proj","self_attn.o_proj","self_attn.q_proj","self_attn.v_proj"],"rank":4,"scale":20},"model":"made/llama","num_layers":1}`,
		"dora":      `{"fine_tune_type":"dora","lora_parameters":{"dropout":0,"keys":["self_attn.q_proj","self_attn.v_proj"],"rank":2,"scale":10},"model":"made/dora","num_layers":2}`,
		"gemma":     `{"fine_tune_type":"lora","lora_parameters":{"dropout":0,"keys":["model.embed_tokens","self_attn.o_proj"],"rank":3,"scale":0.3},"model":"made/gemma","num_layers":2}`,
		"qwen3_moe": `{"fine_tune_type":"lora","lora_parameters":{"dropout":0,"keys":["mlp.gate","mlp.switch_mlp.down_proj","mlp.switch_mlp.gate_proj","mlp.switch_mlp.up_proj","self_attn.k_proj","self_attn.o_proj","self_attn.q_proj","self_attn.v_proj"],"rank":2,"scale":20},"model":"made/qwen3_moe","num_layers":1}`,
		"mixtral":   `{"fine_tune_type":"lora","lora_parameters":{"dropout":0,"keys":["block_sparse_moe.gate","block_sparse_moe.switch_mlp.down_proj","block_sparse_moe.switch_mlp.gate_proj","block_sparse_moe.switch_mlp.up_proj","self_attn.k_proj","self_attn.o_proj","self_attn.q_proj","self_attn.v_proj"],"rank":3,"scale":1.5},"model":"made/mixtral","num_layers":1}`,
	} {
		base, err := os.ReadFile(filepath.Join(mlxData, name, "base/config.json"))
		if err != nil {
			t.Fatal(err)
		}
		o := convert.CreateOptions{BaseConfig: base}
		src := openPath(t, filepath.Join(mlxData, name, "adapter"))
		source, err := os.ReadFile(filepath.Join(mlxData, name, "adapter/adapters.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		files := mlxFiles(t, src, o)
		var got bytes.Buffer
		if err := json.Compact(&got, files["adapter_config.json"]); err != nil || got.String() != config {
			t.Errorf("%s: the configuration is\n%s, want\n%s", name, got.String(), config)
		}
		have, want := tensorTexts(t, files["adapters.safetensors"]), tensorTexts(t, source)
		for tensor, content := range want {
			if have[tensor] != content {
				t.Errorf("%s: %s = %.60s, want %.60s", name, tensor, have[tensor], content)
			}
		}
		if len(have) != len(want) || len(files) != 2 {
			t.Errorf("%s: %d tensors and %d files, want %d and 2", name, len(have), len(files), len(want))
		}
		remarks, err := convert.Remarks(t.Context(), "out", convert.MLX(), src, o)
		if err != nil || len(remarks) > 0 {
			t.Errorf("%s: remarks %q, %v, want none", name, remarks, err)
		}
	}
}

// TestMLXSaysTheScaleOfEveryLayer: one scale and one rank, with the differences in the factors.
func TestMLXSaysTheScaleOfEveryLayer(t *testing.T) {
	for _, c := range []struct {
		name, scale, remark string
		tolerance           float64
	}{
		{"rslora", "\"scale\": 5.65685424949238\n", "", 0}, // 8/√2
		{"pattern", "\"scale\": 2\n", "", 0},               // 0.5, 2 and 8
		{"uneven", "\"scale\": 2\n", "A is rounded to F32, which", 1.0 / (1 << 24)},
	} {
		src := openGGUFCase(t, c.name+"/peft")
		o := convert.CreateOptions{BaseConfig: configOf(t, c.name)}
		files := mlxFiles(t, src, o)
		if text := string(files["adapter_config.json"]); !strings.Contains(text, c.scale) {
			t.Errorf("%s: the configuration is %s, want %s", c.name, text, c.scale)
		}
		remarks, err := convert.Remarks(t.Context(), "out", convert.MLX(), src, o)
		if text := strings.Join(remarks, "\n"); err != nil || !strings.Contains(text, c.remark) || (c.remark == "") != (text == "") {
			t.Errorf("%s: remarks %q, %v, want %q", c.name, text, err, c.remark)
		}
		compareScaled(t, c.name, reopened(t, files), src, c.tolerance)
	}
}

// mlxSource makes a source of layers; the tensors of a layer are A and B of a shape.
func mlxSource(layers ...format.Layer) *inMemorySource {
	s := new(inMemorySource)
	a := format.Adapter{Method: format.MethodLoRA}
	for _, l := range layers {
		l.Roles = map[format.Role]int{}
		l.Roles[format.RoleA] = s.add(l.Module+".A", uint64(l.Rank), 4)
		l.Roles[format.RoleB] = s.add(l.Module+".B", 6, uint64(l.Rank))
		a.Layers = append(a.Layers, l)
	}
	s.manifest.Adapters = []format.Adapter{a}
	return s
}

func mlxLinear(module string, rank int, scale float64) format.Layer {
	return format.Layer{Module: module, Kind: format.Linear, Rank: rank, Scaling: format.Fixed, Fixed: scale}
}

// TestMLXPadsRanks with zeros, so that every layer has the largest one.
func TestMLXPadsRanks(t *testing.T) {
	src := mlxSource(mlxLinear("model.layers.3.q_proj", 2, 3), mlxLinear("model.layers.4.q_proj", 5, 3), mlxLinear("model.layers.5.q_proj", 1, 0))
	files := mlxFiles(t, src, convert.CreateOptions{BaseConfig: []byte(`{"model_type": "llama", "num_hidden_layers": 8}`)})
	for name, content := range tensorTexts(t, files["adapters.safetensors"]) {
		want := "F32 [5 6] "
		if strings.HasSuffix(name, ".lora_a") {
			want = "F32 [4 5] "
		}
		if !strings.HasPrefix(content, want) {
			t.Errorf("%s is %.20s, want %s", name, content, want)
		}
	}
	var config struct {
		NumLayers int `json:"num_layers"`
		LoRA      struct{ Rank int }
	}
	if err := json.Unmarshal(files["adapter_config.json"], &config); err != nil || config.NumLayers != 5 {
		t.Errorf("num_layers is %d, %v, want 5, those from block 3 on", config.NumLayers, err)
	}
	back := reopened(t, files)
	compareScaled(t, "padded", back, src, 0)
	if r := back.Manifest().Adapters[0].Requires; len(r) > 0 {
		t.Errorf("the adapter requires %v", r)
	}
}

func TestMLXSaysWhatNothingTells(t *testing.T) {
	src := mlxSource(mlxLinear("model.layers.3.q_proj", 2, 3))
	remarks, err := convert.Remarks(t.Context(), "out", convert.MLX(), src, convert.CreateOptions{})
	if err != nil || !strings.Contains(strings.Join(remarks, "\n"), "num_layers is -1") {
		t.Errorf("remarks %q, %v, want num_layers named", remarks, err)
	}
}

// TestMLXKeepsItsNumberOfBlocks: where nothing tells how many blocks the base has, num_layers is
// that of the file which the adapter came from, unless it is too small for the layers.
func TestMLXKeepsItsNumberOfBlocks(t *testing.T) {
	files := mlxFiles(t, mlxSource(mlxLinear("model.layers.3.q_proj", 2, 3), mlxLinear("model.layers.5.q_proj", 2, 3)),
		convert.CreateOptions{BaseConfig: []byte(`{"model_type": "llama", "num_hidden_layers": 8}`)})
	written := files["adapter_config.json"]
	for text, want := range map[string]string{"5": "5", "16": "16", "2": "-1", "-1": "-1", `"all"`: "-1"} {
		files["adapter_config.json"] = bytes.Replace(written, []byte(`"num_layers": 5`), []byte(`"num_layers": `+text), 1)
		back := mlxFiles(t, reopened(t, files), convert.CreateOptions{})
		if got := string(back["adapter_config.json"]); !strings.Contains(got, `"num_layers": `+want+"\n") {
			t.Errorf("num_layers %s became %s, want %s", text, got, want)
		}
	}
}

func TestMLXWriterRefusesByName(t *testing.T) {
	tied := []byte(`{"model_type": "gemma", "tie_word_embeddings": true, "num_hidden_layers": 1}`)
	embedding := format.Layer{Module: "model.embed_tokens", Kind: format.Embedding, Rank: 2, Scaling: format.Fixed, Fixed: 1}
	beside := mlxSource(mlxLinear("q_proj", 2, 1))
	i := beside.add("score.weight", 2, 4)
	beside.manifest.Adapters[0].Beside = []format.Beside{{Action: format.Replace, Target: "score.weight", Tensor: i}}
	expert := mlxLinear("mlp.experts.0.up_proj", 2, 1)
	for _, c := range []struct {
		name   string
		source *inMemorySource
		config []byte
		want   string
	}{
		{"saved module", beside, nil, `tensor "score.weight" has no place`},
		{"tied head", mlxSource(mlxLinear("lm_head", 2, 1)), tied, `"lm_head" is for the head, which mlx-lm lacks`},
		{"tied embedding", mlxSource(embedding), tied, `"model.embed_tokens" is for the embedding alone`},
		{"number of experts", mlxSource(expert), nil, "nothing says how many the base has"},
		{"too few experts", mlxSource(mlxLinear("mlp.experts.3.up_proj", 2, 1)), []byte(`{"num_experts": 3}`), "changes expert 3"},
		{"experts that differ", mlxSource(expert, mlxLinear("mlp.experts.1.up_proj", 3, 1)), []byte(`{"num_experts": 3}`), "differ in rank"},
		{"other experts", mlxSource(mlxLinear("mlp.experts.0.wi", 2, 1)), []byte(`{"num_experts": 3}`), `"mlp.experts.wi" are no module of mlx-lm`},
		{"a convolution", sourceOf("conv"), nil, "convolution"},
		{"a bias", sourceOf("bias"), nil, "lora-bias"},
		{"LoHa", sourceOf("LyCORIS"), nil, "hadamard"},
	} {
		err := convert.Check(t.Context(), filepath.Join(t.TempDir(), "out"), convert.MLX(), c.source, convert.CreateOptions{BaseConfig: c.config})
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			!errors.Is(err, format.ErrUnsupported) && !errors.Is(err, format.ErrMismatch) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	err := convert.Check(t.Context(), "out.safetensors", convert.MLX(), nil, convert.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "no name for a directory") {
		t.Errorf("a file: %v", err)
	}
}

// TestMLXRefusesModulesThatItLacks: the projections of another division, GPT-2's blocks, unsloth's
// experts of gpt-oss, and Megatron's names.
func TestMLXRefusesModulesThatItLacks(t *testing.T) {
	base := []format.Tensor{
		{Name: "model.layers.0.self_attn.qkv_proj.weight"}, {Name: "model.layers.0.mlp.down_proj.weight"},
	}
	for _, c := range []struct {
		dialect, module string
		base            []format.Tensor
		want            string // "" if it is written
	}{
		{"", "model.layers.0.mlp.down_proj", base, ""},
		{"", "layers.0.mlp.down_proj", base, ""},
		{"", "model.layers.0.self_attn.q_proj", nil, ""},
		{"", "model.layers.0.self_attn.q_proj", base, "another way"},
		{"", "transformer.h.0.attn.c_attn", nil, "GPT-2"},
		{"", "model.layers.0.mlp.experts.gate_up_projs.1", nil, "gate and up apart"},
		{"megatron", "decoder.layers.0.mlp.linear_fc1", nil, "Megatron's names"},
	} {
		x := format.NewBuilder(c.dialect)
		x.Linear(c.module, 1, 1, format.Float32s([]float32{1, 0}), format.Float32s([]float32{1, 2}))
		src, err := x.Source()
		if err != nil {
			t.Fatal(err)
		}
		err = convert.Check(t.Context(), filepath.Join(t.TempDir(), "out"), convert.MLX(), src, convert.CreateOptions{Base: c.base})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.module, err, c.want)
		}
		if c.dialect == "megatron" {
			if err := convert.Check(t.Context(), filepath.Join(t.TempDir(), "out"), convert.PEFT(), src, convert.CreateOptions{}); err == nil {
				t.Error("Megatron's names are written as PEFT")
			}
		}
	}
}
