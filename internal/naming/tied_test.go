package naming

import "testing"

// TestEnds: evidence of a tie that needs no list of models, and look-alikes.
func TestEnds(t *testing.T) {
	yes, no := true, false
	table, inner := []uint64{40, 16}, []uint64{16, 16}
	with := func(names ...string) map[string][]uint64 {
		shapes := map[string][]uint64{"x.layers.0.q.weight": inner, "x.layers.0.up.weight": table}
		for _, name := range names {
			shapes[name] = table
		}
		return shapes
	}
	causal := []string{"NewForCausalLM"}
	for _, c := range []struct {
		name string
		m    Model
		want Ends // its Why: "?" is any
	}{
		{"a generative model of an unknown type without a head", Model{Shapes: with("x.embed_tokens.weight"), Configured: true, ModelType: "new", Architectures: causal},
			Ends{"x.embed_tokens.weight", "", true, ""}},
		{"an embedding of an unknown name", Model{Shapes: with("backbone.tokens.weight"), Configured: true, Architectures: causal, VocabSize: 40},
			Ends{"backbone.tokens.weight", "", true, ""}},
		{"one that an adapter looks tokens up in", Model{Shapes: with("backbone.tokens.weight"), Configured: true, Architectures: causal, LookedUp: []string{"backbone.tokens.weight"}},
			Ends{"backbone.tokens.weight", "", true, ""}},
		{"one whose head an adapter changes", Model{Shapes: with("backbone.tokens.weight"), Configured: true, Architectures: causal, HeadShape: table},
			Ends{"backbone.tokens.weight", "", true, ""}},
		{"positions are no tokens", Model{Shapes: map[string][]uint64{"wpe.weight": inner}, Configured: true, Architectures: causal, LookedUp: []string{"wpe.weight"}},
			Ends{"", "", true, ""}},
		{"a head of an unknown name", Model{Shapes: with("x.embed_tokens.weight", "output.weight"), Configured: true, ModelType: "new", Architectures: causal},
			Ends{"x.embed_tokens.weight", "output.weight", false, "?"}},
		{"both in the files, and tied", Model{Shapes: with("x.embed_tokens.weight", "lm_head.weight"), Configured: true, Architectures: causal, Tie: &yes},
			Ends{"x.embed_tokens.weight", "lm_head.weight", true, ""}},
		{"both in the files, and apart", Model{Shapes: with("x.embed_tokens.weight", "lm_head.weight"), Configured: true, Architectures: causal, Tie: &no},
			Ends{"x.embed_tokens.weight", "lm_head.weight", false, "?"}},
		{"only text_config says so", Model{Shapes: with("x.embed_tokens.weight"), Configured: true, Architectures: causal, Tie: &no, TextTie: &yes},
			Ends{"x.embed_tokens.weight", "", true, ""}},
		{"config.json denies it without a head", Model{Shapes: with("x.embed_tokens.weight"), Configured: true, Architectures: causal, Tie: &no},
			Ends{"x.embed_tokens.weight", "", true, "?"}},
		{"a classifier", Model{Shapes: with("x.embed_tokens.weight"), Configured: true, ModelType: "gpt2", Architectures: []string{"GPT2ForSequenceClassification"}, Tie: &yes},
			Ends{"x.embed_tokens.weight", "", false, ""}},
		{"an encoder", Model{Shapes: with("shared.weight", "encoder.embed_tokens.weight"), Configured: true, ModelType: "t5", Architectures: []string{"T5EncoderModel"}, Tie: &yes},
			Ends{"shared.weight", "", false, ""}},
		{"a trunk that never ties", Model{Shapes: with("embed_tokens.weight"), Configured: true, ModelType: "mistral", Architectures: []string{"MistralModel"}},
			Ends{"embed_tokens.weight", "", false, "?"}},
		{"a trunk whose class ties", Model{Shapes: with("wte.weight"), Configured: true, ModelType: "gpt2", Architectures: []string{"GPT2Model"}},
			Ends{"wte.weight", "", true, "?"}},
		{"no configuration", Model{Shapes: with("embed_tokens.weight")}, Ends{"embed_tokens.weight", "", true, "?"}},
	} {
		got := c.m.Ends()
		if c.want.Why == "?" && got.Why != "" {
			got.Why = "?"
		}
		if !got.Tied {
			got.Why, c.want.Why = "", ""
		}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestTiedHead(t *testing.T) {
	for _, c := range []struct{ embedding, modelType, want string }{
		{"model.embed_tokens.weight", "llama", "lm_head.weight"},
		{"backbone.embeddings.weight", "mamba", "lm_head.weight"},
		{"model.decoder.embed_tokens.weight", "whisper", "proj_out.weight"},
		{"language_model.model.embed_tokens.weight", "gemma3", "language_model.lm_head.weight"},
		{"model.language_model.embed_tokens.weight", "qwen3_vl", "lm_head.weight"},
		{"bert.embeddings.word_embeddings.weight", "bert", ""},
	} {
		if got, why := TiedHead(c.embedding, c.modelType); got != c.want || (why != "") != (got == "") {
			t.Errorf("TiedHead(%q, %q) = %q, %q, want %q", c.embedding, c.modelType, got, why, c.want)
		}
	}
}
