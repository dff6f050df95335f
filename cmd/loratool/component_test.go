package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
)

// TestAdviceFitsTheCommand: a hint names no flag that the command lacks, and no component that the
// user did not mean; inspect shows a size that only the base tells as a letter.
func TestAdviceFitsTheCommand(t *testing.T) {
	const images, ia3 = "../../testdata/diffusion/", "../../testdata/lycoris/adapters/ia3-output.safetensors"
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"merge " + images + "bases/sd1 " + images + "cases/sd1-diffusers/adapter.safetensors -o " + at("merged"), exitDone, nil},
		{"extract " + images + "bases/sd1 " + at("merged") + " --rank 2 -o " + at("peft"), exitInput,
			[]string{"the adapter has layers of text_encoder, unet",
				"hint: extract to a .lora file, and write one component of it with loratool convert and --only unet"}},
		{"convert " + images + "cases/sd1-diffusers/adapter.safetensors -o " + at("c") + " --only unt", exitUsage,
			[]string{"did you mean --only unet?"}},
		{"convert " + images + "cases/sd1-diffusers/adapter.safetensors -o " + at("c") + " --only foo", exitUsage,
			[]string{"hint: loratool inspect lists the components"}},
		{"inspect " + ia3, exitDone, []string{"output-scaling 12×n", "output-scaling 16×n"}},
	} {
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"loratool"}, strings.Fields(c.args)...), &out, &errs)
		text := strings.Join(strings.Fields(out.String()+errs.String()), " ")
		if code != c.code {
			t.Errorf("loratool %s = %d, want %d: %s", c.args, code, c.code, text)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("loratool %s lacks %q: %s", c.args, want, text)
			}
		}
	}
}
