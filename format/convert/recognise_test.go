package convert_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// ones returns tensors of ones with two dimensions.
func ones(names ...string) (tensors []testkit.Tensor) {
	for _, name := range names {
		tensors = append(tensors, testkit.Values(name, dtype.F32, []uint64{2, 2}, 1, 1, 1, 1))
	}
	return tensors
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDialectsAreNamed: an adapter of another program counts as an adapter, whether the path is a
// file or the directory that holds it. The error names its dialect, with or without a PEFT
// configuration beside it. Only for PEFT's keys does the hint ask for that configuration.
func TestDialectsAreNamed(t *testing.T) {
	const config = `{"peft_type":"LORA","r":2,"lora_alpha":2}`
	pickles := filepath.Join(testdata, "pickle/refuse")
	for _, c := range []struct {
		file, dialect string
		content       []byte
	}{
		{"adapters.safetensors", "MLX", testkit.Encode(nil, ones("model.layers.0.q_proj.lora_a", "model.layers.0.q_proj.lora_b")...)},
		{"a.safetensors", "loralib", testkit.Encode(nil, ones("roberta.q.lora_A", "roberta.q.lora_B")...)},
		{"a.safetensors", "Sam_LoRA", testkit.Encode(nil, ones("w_a_000", "w_b_000")...)},
		{"a.safetensors", "textual inversion", testkit.Encode(nil, ones("emb_params")...)},
		{"a.safetensors", "textual inversion", testkit.Encode(nil, ones("clip_l", "clip_g")...)},
		{"a.bin", "CLIP-LoRA", read(t, filepath.Join(pickles, "clip-lora.bin"))},
		{"a.pt", "textual inversion", read(t, filepath.Join(pickles, "textual-inversion.bin"))},
		{"a.pth", "cloneofsimo", read(t, filepath.Join(pickles, "list.bin"))},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, c.file)
		testkit.Write(t, file, c.content)
		for _, path := range []string{dir, file} {
			if !convert.IsAdapter(t.Context(), path) {
				t.Errorf("%s: IsAdapter(%s) = false", c.dialect, filepath.Base(path))
			}
			_, err := convert.Open(t.Context(), path, convert.Options{})
			if err == nil || !strings.Contains(err.Error(), c.dialect) || strings.Contains(fault.Hint(err), "adapter_config") {
				t.Errorf("%s: Open = %v (hint: %s)", c.dialect, err, fault.Hint(err))
			}
		}
		testkit.Write(t, filepath.Join(dir, "adapter_config.json"), []byte(config))
		if _, err := convert.Open(t.Context(), file, convert.Options{}); err == nil || !strings.Contains(err.Error(), c.dialect) {
			t.Errorf("%s with a configuration of PEFT: Open = %v", c.dialect, err)
		}
	}
}

// TestAModelIsNoAdapter, even if it was saved with adapters in its layers.
func TestAModelIsNoAdapter(t *testing.T) {
	for _, prefix := range []string{"", "base_model.model.", "unet."} {
		var names []string
		for _, layer := range []string{"0", "1", "2"} {
			q := prefix + layer + ".q."
			names = append(names, q+"base_layer.weight", q+"lora_A.speech.weight", q+"lora_A.weight", q+"lora_B.weight")
		}
		for _, file := range []string{"model.safetensors", "other.safetensors"} {
			dir := t.TempDir()
			path := filepath.Join(dir, file)
			testkit.Write(t, path, testkit.Encode(nil, ones(names...)...))
			for _, at := range []string{path, dir} {
				if convert.IsAdapter(t.Context(), at) {
					t.Errorf("IsAdapter of a model with adapters inside, %s %q: true", file, prefix)
				}
			}
		}
	}
}

// TestWhereAnAdapterLies: the error names the true fault of a directory.
func TestWhereAnAdapterLies(t *testing.T) {
	adapter := testkit.Encode(nil, ones("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")...)
	for _, c := range []struct{ file, want string }{
		{"adapter_model-00001-of-00002.safetensors", "nor the shard adapter_model-00002-of-00002.safetensors"},
		{"actor/lora_adapter/adapter_model.safetensors", `deeper down, in "actor/lora_adapter"`},
		{"a/b/c/d/adapter_model.safetensors", `deeper down, in "a/b/c/d"`},
		{"adapter_model.safetensors", "there is no adapter_config.json"},
		{"only.safetensors", "there is no adapter_config.json"},
		{"adapter_config.json", "holds no adapter_model.safetensors"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, filepath.FromSlash(c.file))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		testkit.Write(t, path, adapter)
		_, err := convert.Open(t.Context(), dir, convert.Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.Hint(err) == "" || !convert.IsAdapter(t.Context(), dir) {
			t.Errorf("%s: Open = %v (hint: %s), want %q; IsAdapter %v", c.file, err, fault.Hint(err), c.want, convert.IsAdapter(t.Context(), dir))
		}
	}
}

// TestWeightsBesideAnAdapterAreRefused: a file of weights in the adapter's directory is an error
// that names it, unless the file is known to be unrelated.
func TestWeightsBesideAnAdapterAreRefused(t *testing.T) {
	const q = "base_model.model.model.layers.0.q_proj."
	factors := ones(q+"lora_A.weight", q+"lora_B.weight")
	pickled := read(t, filepath.Join(testdata, "pickle/read/plain.bin"))
	optimizer := read(t, filepath.Join(testdata, "pickle/refuse/optimizer.bin"))
	for _, c := range []struct {
		file    string
		content []byte
		model   bool // config.json lies there as well
		want    string
	}{
		{"non_lora_trainables.bin", pickled, false, "refused"},
		{"non_lora_trainables.bin", pickled, true, "refused"}, // as LLaVA has it
		{"vit.safetensors", testkit.Encode(nil, ones("visual.qkv.weight")...), true, "refused"},
		{"classifier.pt", pickled, false, "refused"},
		{"anything.pth", read(t, filepath.Join(testdata, "pickle/refuse/object.bin")), false, "refused"},
		{"tensor.pt", read(t, filepath.Join(testdata, "pickle/refuse/tensor.bin")), false, "refused"},
		{"model.safetensors", testkit.Encode(nil, ones("score.weight")...), false, "refused"},
		{"pointer.safetensors", []byte("version https://git-lfs.github.com/spec/v1\n"), false, "refused"},

		{"model.safetensors", testkit.Encode(nil, ones("model.layers.0.q_proj.weight", "lm_head.weight")...), false, ""},
		{"model.safetensors", testkit.Encode(nil, ones("score.weight")...), true, ""},
		{"model-00002-of-00002.safetensors", testkit.Encode(nil, ones("lm_head.weight")...), true, ""},
		{"consolidated.00.pth", pickled, true, ""},
		{"optimizer.pt", pickled, false, ""},
		{"rng_state_0.pth", pickled, false, ""},
		{"training_args.bin", pickled, false, ""},
		{"my_state.pt", optimizer, false, ""},
		{"losses.bin", read(t, filepath.Join(testdata, "pickle/refuse/no-tensors.bin")), false, ""},
		{"adapter_model.bin", pickled, false, ""},
		{"adapter_model.pt", pickled, false, ""},
		{"copy.safetensors", testkit.Encode(nil, factors...), false, ""},
		{"model-q4.gguf", []byte("GGUF"), false, ""},
		{"tokenizer.model", pickled, false, ""},
		{"vocab.bin", []byte("no format of weights, whatever its name"), false, ""},
		{"empty.bin", nil, false, ""},
		{"0000100_adapters.safetensors", testkit.Encode(nil, ones("model.layers.9.q_proj.lora_a", "model.layers.9.q_proj.lora_b")...), false, "noted"},
	} {
		dir := t.TempDir()
		testkit.WriteAdapter(t, dir, 2, 2, factors...)
		testkit.Write(t, filepath.Join(dir, c.file), c.content)
		if c.model {
			testkit.Write(t, filepath.Join(dir, "config.json"), []byte(`{}`))
		}
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		var notes string
		if err == nil {
			notes = strings.Join(src.Manifest().Notes, "; ")
			src.Close()
		}
		switch {
		case c.want == "refused" && (err == nil || !strings.Contains(err.Error(), c.file) || !strings.Contains(fault.Hint(err), "Options.Without="+c.file)):
			t.Errorf("%s beside an adapter (a model's folder: %v): Open = %v (hint: %s)", c.file, c.model, err, fault.Hint(err))
		case c.want != "refused" && (err != nil || strings.Contains(notes, c.file) != (c.want == "noted")):
			t.Errorf("%s beside an adapter (a model's folder: %v): Open = %v, notes %s", c.file, c.model, err, notes)
		case c.want != "refused":
			continue
		}
		src, err = convert.Open(t.Context(), dir, convert.Options{Without: []string{c.file}})
		if err != nil || len(convert.WeightsBeside(src)) != 0 {
			t.Errorf("without %s: Open = %v", c.file, err)
			continue
		}
		src.Close()
		src, err = convert.Open(t.Context(), dir, convert.Options{AllowBeside: true})
		if err != nil || len(convert.WeightsBeside(src)) != 1 || convert.WeightsBeside(src)[0] != c.file {
			t.Errorf("%s allowed: Open = %v", c.file, err)
			continue
		}
		src.Close()
	}
}

// TestANameThatIsRefusedStillShowsAnAdapter: inspect would call the file a checkpoint otherwise.
func TestANameThatIsRefusedStillShowsAnAdapter(t *testing.T) {
	path := write(t, nil, append(factors("lora_te_q", "lora_down.weight", "lora_up.weight", 2),
		zerosOf("lora_te_\x1b[31m.alpha", dtype.F32))...)
	if !convert.IsAdapter(t.Context(), path) {
		t.Error("not an adapter")
	}
	refuses(t, path, convert.Options{}, "control characters")
}
