package convert

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/pyre"
)

// zeros is a source whose tensors are all zero.
type zeros struct{ manifest format.Manifest }

func (z *zeros) Manifest() *format.Manifest                { return &z.manifest }
func (z *zeros) ReadBlobAt(p []byte, _ int, _ int64) error { clear(p); return nil }
func (z *zeros) Close() error                              { return nil }

// fuzzTensors has a key of every kind of role.
func fuzzTensors() (tensors []format.Tensor) {
	for _, t := range []struct {
		name  string
		shape []uint64
	}{
		{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", []uint64{2, 6}},
		{"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", []uint64{4, 2}},
		{"base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", []uint64{4}},
		{"base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight", []uint64{8, 6}},
		{"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", []uint64{4, 8}},
		{"base_model.model.model.layers.1.self_attn.v_proj.lora_magnitude_vector", []uint64{4}},
		{"base_model.model.model.layers.1.mlp.experts.lora_A.weight", []uint64{8, 6}},
		{"base_model.model.model.layers.1.mlp.experts.lora_B.weight", []uint64{4, 8}},
		{"base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight", []uint64{8, 4}},
		{"base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight", []uint64{6, 8}},
		{"base_model.model.conv.lora_A.weight", []uint64{2, 3, 3, 3}},
		{"base_model.model.conv.lora_B.weight", []uint64{5, 2, 1, 1}},
		{"base_model.model.model.embed_tokens.lora_embedding_A", []uint64{2, 9}},
		{"base_model.model.model.embed_tokens.lora_embedding_B", []uint64{6, 2}},
		{"base_model.model.lm_head.token_adapter.trainable_tokens_delta", []uint64{2, 6}},
		{"base_model.model.lone.lora_A.weight", []uint64{2, 6}},
		{"base_model.model.classifier.weight", []uint64{2, 6}},
		{"base_model.model.x.lora_unknown", []uint64{2}},
	} {
		tensors = append(tensors, format.Tensor{Name: t.name, DType: dtype.F32, Shape: t.shape})
	}
	return tensors
}

// FuzzConfig: for any text, parsePEFTConfig returns either an error of a kind or a configuration
// under which an adapter can be written to a container. A field without a known meaning becomes a
// requirement, never an invalid manifest.
func FuzzConfig(f *testing.F) {
	for _, pattern := range []string{"peft/merge/*/adapter*", "peft/refuse/*/adapter", "peft/eras/*/adapter", "corpus/*"} {
		paths, err := filepath.Glob("../../testdata/" + pattern + "/" + format.PEFTConfig)
		if err != nil || len(paths) == 0 {
			f.Fatalf("%s matches %d files: %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text), "", "")
		}
	}
	for _, text := range publishedConfigs(f) {
		f.Add(text, "", "")
	}
	for _, field := range [][2]string{
		{"r", "0"}, {"r", "-1"}, {"r", "9223372036854775807"}, {"r", "70000"}, {"r", "1.5"}, {"lora_alpha", "1e308"}, {"lora_alpha", "-0.0"}, {"lora_alpha", "null"},
		{"rank_pattern", `{"q_proj":2,"v_proj":8,"(?!a)b":3}`}, {"rank_pattern", `{"q_proj":1e30}`}, {"rank_pattern", "[]"}, {"rank_pattern", `{"a":{}}`},
		{"alpha_pattern", `{"(a+)+$":2,"(?P<n>q)_(?P=n)":3,".*":4,"":5}`}, {"trainable_token_indices", "[1,2]"}, {"trainable_token_indices", "[1,1]"},
		{"trainable_token_indices", `{"lm_head":[0,-1]}`}, {"target_parameters", `["experts.w1","experts.w2"]`}, {"target_parameters", "{}"}, {"peft_version", `"0.14.0"`},
		{"peft_version", `"0.99999999999999999999"`}, {"bias", `"lora_only"`}, {"init_lora_weights", `"pissa_niter_\u0000"`}, {"fan_in_fan_out", "1"}, {"use_dora", `"no"`},
		{"\u0001", "true"}, {"peft_type", `"\ud800"`}, {"base_model_name_or_path", `"\u0000"`}, {"revision", `["x"]`}, {"enable_lora", "[true,false]"},
	} {
		f.Add(`{"peft_type":"LORA","r":2,"lora_alpha":4}`, field[0], field[1])
	}
	f.Fuzz(func(t *testing.T, text, field, value string) {
		text = withField(text, field, value)
		c, err := parsePEFTConfig([]byte(text))
		if err != nil {
			var input *fault.Error
			if !errors.As(err, &input) && !errors.Is(err, errNotPEFT) {
				t.Errorf("parsePEFTConfig = %v, want an error of a kind", err)
			}
			return
		}
		c.patterns.budget = pyre.NewBudget(context.Background(), 100_000) // many runs matter more than long ones
		src := &zeros{format.Manifest{Tensors: fuzzTensors()}}
		p := peftReader{config: c, collector: collector{tensors: src.manifest.Tensors, manifest: &src.manifest}}
		src.manifest.Adapters = []format.Adapter{p.adapter(t.Context())}
		if got, want := len(src.manifest.Adapters[0].Tensors()), len(src.manifest.Tensors); got != want {
			t.Errorf("the adapter has %d tensors, want each of %d once", got, want)
		}
		if _, err := format.Write(context.Background(), io.Discard, src, format.WriterOptions{Workers: 1}); err != nil {
			t.Errorf("Write = %v", err)
		}
	})
}

// withField sets a field of a configuration, if both are valid. Most changes of a text just make it
// invalid JSON.
func withField(text, field, value string) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &fields) != nil || fields == nil || !json.Valid([]byte(value)) {
		return text
	}
	fields[field] = json.RawMessage(value)
	changed, err := json.Marshal(fields)
	if err != nil {
		return text
	}
	return string(changed)
}

// publishedConfigs returns the texts of testdata/configs.
func publishedConfigs(t testing.TB) (texts []string) {
	file, err := os.Open("../../testdata/configs/peft.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var line struct{ Text string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, line.Text)
	}
	return slices.Compact(texts)
}

// FuzzGGUF: any bytes that open as a GGUF adapter can be written to a container.
func FuzzGGUF(f *testing.F) {
	for _, name := range []string{"llama", "mixtral"} {
		p, err := os.ReadFile(filepath.Join("..", "..", "testdata", "gguf", name, "reference.gguf"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		src, err := OpenReader(t.Context(), bytes.NewReader(p), int64(len(p)), Options{From: "gguf"})
		if err != nil {
			return
		}
		defer src.Close()
		if err := format.Validate(src.Manifest()); err != nil {
			t.Fatalf("the manifest of an opened adapter: %v", err)
		}
		for i := range src.Manifest().Tensors {
			if _, err := dataOf(src, i); err != nil {
				t.Fatalf("a tensor of an opened adapter: %v", err)
			}
		}
	})
}
