package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestFlagsForAdaptersThatLeaveSomethingOpen: inspect shows the dialect and its sign, --alpha and
// --scale give what the file does not say, and a bundle takes them for what is added.
func TestFlagsForAdaptersThatLeaveSomethingOpen(t *testing.T) {
	dir, mergedLinear := t.TempDir(), filepath.Join("..", "..", "testdata", "native", "loralib-gpt2", "adapter.pt")
	ones := []float64{1, 1, 1, 1}
	pair := []testkit.Tensor{
		testkit.Values("lora_te_q.lora_down.weight", dtype.F32, []uint64{2, 2}, ones...),
		testkit.Values("lora_te_q.lora_up.weight", dtype.F32, []uint64{2, 2}, ones...),
	}
	alone, said := filepath.Join(dir, "alone.safetensors"), filepath.Join(dir, "said.safetensors")
	testkit.Write(t, alone, testkit.Encode(map[string]string{"ss_network_module": "networks.lora"}, pair...))
	alpha := testkit.Values("lora_te_q.alpha", dtype.F32, []uint64{}, 1)
	testkit.Write(t, said, testkit.Encode(nil, append(pair, alpha)...))
	bundle := filepath.Join(dir, "all.lora")
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"inspect " + alone, exitDone, []string{
			"dialect kohya", "recognised by keys such as lora_te_q.lora_", "ss_network_module = networks.lora",
			"the file does not say its scale", "--alpha or --scale",
		}},
		{"inspect --json --alpha 8 " + alone, exitDone, []string{`"alpha": 8`, `"scale": 4`,
			`"recognised_by": "keys`}},
		{"inspect --json --scale 0.25 " + alone, exitDone, []string{`"scale": 0.25`}},
		{"inspect --alpha 8 " + said, exitInput,
			[]string{"--alpha and --scale are for adapters that do not say their scale"}},
		{"inspect --alpha 8 --scale 1 " + alone, exitUsage, []string{"both"}},
		{"inspect --alpha 0 " + alone, exitUsage, []string{"not 0"}},
		{"inspect --from khoya " + alone, exitUsage, []string{"kohya"}},
		{"inspect --enable-lora true,no " + alone, exitUsage, []string{"a list of true and false"}},
		{"inspect --enable-lora false " + alone, exitUsage, []string{"enables no projection"}},
		{"inspect --alpha 8 " + mergedLinear, exitDone,
			[]string{"merge refuses it", "(--enable-lora): transformer"}},
		{"inspect --alpha 8 --enable-lora true,false,true " + mergedLinear, exitDone,
			[]string{"merge applies it", "MergedLinear"}},
		{"bundle add --alpha 8 " + bundle + " " + alone, exitDone, nil},
		{"bundle add --alpha 4 --name other " + bundle + " " + alone, exitDone, nil},
		{"convert " + alone + " -o " + filepath.Join(dir, "peft"), exitInput,
			[]string{`no table of an architecture knows the modules "lora_te_q"`, "--base"}},
		{"convert " + alone + " --for nobody -o " + filepath.Join(dir, "nobody"), exitUsage,
			[]string{"unknown program", "comfyui, diffusers, a1111"}},
		{"convert " + alone + " --for comfyui --to kohya -o " + filepath.Join(dir, "both"), exitUsage,
			[]string{"--for comfyui writes the dialect comfyui, and --to says kohya"}},
		{"convert " + alone + " --for comfyui -o " + filepath.Join(dir, "comfyui.lora"), exitUsage,
			[]string{"comfyui is a safetensors file"}},
		{"convert " + alone + " --to xlabs -o " + filepath.Join(dir, "xlabs"), exitUsage,
			[]string{"lora, gguf, mlx, peft, kohya, diffusers and comfyui"}},
	} {
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"loratool"}, strings.Fields(c.args)...),
			&out, &errs)
		text := strings.Join(strings.Fields(out.String()+errs.String()), " ")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("loratool %s lacks %q: %s", c.args, want, text)
			}
		}
		if code != c.code {
			t.Errorf("loratool %s = %d, want %d: %s", c.args, code, c.code, text)
		}
	}
}
