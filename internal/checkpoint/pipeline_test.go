package checkpoint_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
)

// TestOpenPipeline: the tensors of a pipeline have their component in front, a component with
// several copies of its weights shows the one without a variant, and every file is either part of
// the model or left.
func TestOpenPipeline(t *testing.T) {
	const whole, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
	dir := directory(t, map[string][]byte{
		"model_index.json":        []byte("{}"),
		"v1-5-pruned.safetensors": weights("x"),
		"unet/config.json":        []byte("{}"),
		"unet/" + whole:           weights("a"),
		"unet/" + half:            weights("a"),
		"vae/" + half:             weights("a"),
		"text_encoder/model.safetensors.index.json":     index(t, map[string]string{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
		"text_encoder/model-00001-of-00002.safetensors": weights("a"),
		"text_encoder/model-00002-of-00002.safetensors": weights("b"),
		"text_encoder/pytorch_model.bin":                []byte("PK"),
		"safety_checker/pytorch_model.bin":              []byte("PK"),
		"tokenizer/vocab.json":                          []byte("{}"),
	})
	c, err := checkpoint.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, want := c.Names(), []string{"text_encoder.a", "text_encoder.b", "unet.a", "vae.a"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	if got, want := checkpoint.Unread(c), map[string]string{"safety_checker": "safety_checker/pytorch_model.bin"}; !maps.Equal(got, want) {
		t.Errorf("not read %q, want %q", got, want)
	}
	if !c.IsPipeline() {
		t.Error("not a pipeline")
	}
	wantSide := []string{
		"model_index.json", "safety_checker/pytorch_model.bin", "text_encoder/model.safetensors.index.json",
		"tokenizer/vocab.json", "unet/config.json",
	}
	if !slices.Equal(c.Side, wantSide) {
		t.Errorf("side %q, want %q", c.Side, wantSide)
	}
	wantLeft := []string{"text_encoder/pytorch_model.bin", "unet/" + half, "v1-5-pruned.safetensors"}
	if !slices.Equal(c.Left, wantLeft) {
		t.Errorf("left %q, want %q", c.Left, wantLeft)
	}
	if got, want := c.FileOf("unet.a"), "unet/"+whole; got != want {
		t.Errorf("unet.a is in %s, want %s", got, want)
	}

	v, err := c.Rename(map[string]string{"unet.a": "unet.z"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := v.Lookup("unet.z"); !ok {
		t.Errorf("a view of a pipeline has %q", v.Names())
	}
}
