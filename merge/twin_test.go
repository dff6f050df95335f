package merge_test

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestOneTensorSavedForAllItsModules: PEFT saves both ends of a tie, while the base has one tensor.
// Equal values are merged; different ones are refused without a choice.
func TestOneTensorSavedForAllItsModules(t *testing.T) {
	const llama = `{"model_type":"llama","architectures":["LlamaForCausalLM"],"tie_word_embeddings":true}`
	const bert = `{"model_type":"bert","architectures":["BertForMaskedLM"],"tie_word_embeddings":true}`
	const roberta = `{"model_type":"roberta","architectures":["RobertaForMaskedLM"],"tie_word_embeddings":true}`
	value := func(name string, v ...float64) testkit.Tensor {
		shape := []uint64{uint64(len(v)) / 2, 2}
		if strings.HasSuffix(name, "bias") {
			shape = []uint64{uint64(len(v))}
		}
		return testkit.Values(name, dtype.F32, shape, v...)
	}
	for _, c := range []struct {
		name, config string
		base         []testkit.Tensor
		saved        []testkit.Tensor
		wrong        string
	}{
		{"both ends", llama, []testkit.Tensor{value("model.embed_tokens.weight", 1, 2, 3, 4)},
			[]testkit.Tensor{value("model.embed_tokens.weight", 5, 6, 7, 8), value("lm_head.weight", 5, 6, 7, 8)}, ""},
		{"different ends", llama, []testkit.Tensor{value("model.embed_tokens.weight", 1, 2, 3, 4)},
			[]testkit.Tensor{value("model.embed_tokens.weight", 5, 6, 7, 8), value("lm_head.weight", 5, 6, 7, 9)}, "tied"},
		{"one end", llama, []testkit.Tensor{value("model.embed_tokens.weight", 1, 2, 3, 4)},
			[]testkit.Tensor{value("model.embed_tokens.weight", 5, 6, 7, 8)}, "tied"},
		{"a head with the bias of the module around it", bert,
			[]testkit.Tensor{value("bert.embeddings.word_embeddings.weight", 1, 2, 3, 4), value("cls.predictions.bias", 1, 2)},
			[]testkit.Tensor{value("bert.embeddings.word_embeddings.weight", 5, 6, 7, 8), value("cls.predictions.bias", 3, 4),
				value("cls.predictions.decoder.weight", 5, 6, 7, 8), value("cls.predictions.decoder.bias", 3, 4)}, ""},
		{"a bias that only the head has", bert,
			[]testkit.Tensor{value("bert.embeddings.word_embeddings.weight", 1, 2, 3, 4), value("cls.predictions.bias", 1, 2)},
			[]testkit.Tensor{value("bert.embeddings.word_embeddings.weight", 5, 6, 7, 8), value("cls.predictions.decoder.weight", 5, 6, 7, 8),
				value("cls.predictions.decoder.bias", 3, 4)}, "cls.predictions.decoder.bias"},
		{"the bias of a head, which no tie is about", roberta,
			[]testkit.Tensor{value("roberta.embeddings.word_embeddings.weight", 1, 2, 3, 4), value("lm_head.bias", 1, 2)},
			[]testkit.Tensor{value("lm_head.bias", 3, 4)}, ""},
		{"the counter of a normalisation, which is copied", llama,
			[]testkit.Tensor{value("n.weight", 1, 2), {Name: "n.num_batches_tracked", DType: dtype.I64, Data: []byte{1, 0, 0, 0, 0, 0, 0, 0}}},
			[]testkit.Tensor{value("n.weight", 3, 4), {Name: "n.num_batches_tracked", DType: dtype.I64, Data: []byte{7, 0, 0, 0, 0, 0, 0, 0}}}, ""},
		{"a counter for weights", llama, []testkit.Tensor{value("n.weight", 1, 2)},
			[]testkit.Tensor{{Name: "n.weight", DType: dtype.I64, Shape: []uint64{1, 2}, Data: make([]byte, 16)}}, "I64"},
	} {
		dir := t.TempDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		testkit.Write(t, in("base/config.json"), []byte(c.config))
		testkit.Write(t, in("base/model.safetensors"), testkit.Encode(nil, c.base...))
		var keys []testkit.Tensor
		var modules []string
		for _, x := range c.saved {
			modules = append(modules, `"`+x.Name[:strings.LastIndex(x.Name, ".")]+`"`)
			x.Name = "base_model.model." + x.Name
			keys = append(keys, x)
		}
		testkit.Write(t, in("adapter/adapter_config.json"), []byte(`{"peft_type":"LORA","r":1,"bias":"all","modules_to_save":[`+strings.Join(modules, ",")+`]}`))
		testkit.Write(t, in("adapter/adapter_model.safetensors"), testkit.Encode(nil, keys...))
		err := mergeOne(t, in("base"), in("adapter"), in("out"))
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: %v, want an error with %q", c.name, err, c.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		out, err := checkpoint.Open(t.Context(), in("out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		for _, x := range c.saved {
			ref, ok := out.Lookup(x.Name)
			if !ok {
				continue
			}
			got := make([]byte, ref.Tensor.NBytes)
			if err := ref.Tensor.ReadAt(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, x.Data) {
				t.Errorf("%s: %s differs from the adapter's", c.name, x.Name)
			}
		}
		if len(out.Names()) != len(c.base) {
			t.Errorf("%s: the result has %q, the base %d tensors", c.name, out.Names(), len(c.base))
		}
	}
}

func mergeOne(t *testing.T, base, adapter, out string) error {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	plan, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
	if err != nil {
		return err
	}
	defer plan.Close()
	_, err = plan.Run(context.Background(), out)
	return err
}

func openCheckpoint(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func read(t *testing.T, c *checkpoint.Checkpoint, name string) []byte {
	t.Helper()
	ref, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	b := make([]byte, ref.Tensor.NBytes)
	if len(b) == 0 {
		return b
	}
	if err := ref.Tensor.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}
