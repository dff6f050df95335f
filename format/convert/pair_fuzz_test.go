package convert

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// FuzzPairs opens tensors of any names and shapes in every dialect of image models. Each line of
// the text is a name and dimensions. Every tensor must be referred to once, and the manifest must
// be valid.
func FuzzPairs(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	modules := []string{
		"lora_unet_double_blocks_0_img_attn_qkv", "lora_unet__double_blocks_0_img_attn_qkv", "lora_te3_x",
		"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out", "transformer.a",
		"base_model.model.transformer.a", "diffusion_model.blocks.0.q", "double_blocks.1.processor",
		"text_encoder.x.self_attn", "bundle_emb.cat", "a..b", "_orig_mod.a", "",
	}
	tails := []string{
		"qkv_lora1.down.weight", "qkv_lora.up.weight", "to_q_lora.down.weight", "processor.to_out_lora.up.weight",
		"weight", "lora_A", "0:up", "", "alpha", "lora_A.x.y.weight",
	}
	for _, t := range pairTails {
		tails = append(tails, strings.ReplaceAll(t.tail, "*", "default"))
	}
	for range 60 {
		var text strings.Builder
		for range rng.IntN(8) {
			fmt.Fprintf(&text, "%s.%s", modules[rng.IntN(len(modules))],
				tails[rng.IntN(len(tails))])
			for range rng.IntN(4) {
				fmt.Fprintf(&text, " %d", []int{1, 2, 2, 2, 4, 0}[rng.IntN(6)])
			}
			text.WriteByte('\n')
		}
		f.Add(text.String(), rng.IntN(2) == 0)
	}
	f.Add("unet:0:up 2 1\nunet:0:down 1 2\nunet:1:down 1 2\n<s1> 2\nvae:-1:up\nx:9999999999999999999:up", false)
	f.Add("0 2 1\n1 1 2\n2 2 1\n3 1 2\n4 2 1\n5 1 2\n6 2 1\n7 1 2", true)
	f.Fuzz(func(t *testing.T, text string, hasConfig bool) {
		if !utf8.ValidString(text) {
			return // neither JSON nor a pickle of Python has such names
		}
		tensors := tensorsOf(text)
		for _, d := range append(pairDialects, nil) {
			m := format.Manifest{Tensors: tensors}
			src := &zeros{m}
			p := pairReader{
				collector: collector{tensors: tensors,
					manifest: &src.manifest}, values: src, options: Options{Alpha: 2},
			}
			if hasConfig {
				p.options.Alpha = 0
				p.metadata = map[string]string{diffusersMetadata: `{"transformer.r":2,"unet.rank_pattern":{".*":3}}`}
			}
			assign := func(p *pairReader) error { return p.assign(t.Context()) }
			if d == nil {
				assign = func(p *pairReader) error { return p.assignList(parseListKey) }
			} else {
				p.dialect, p.modules, p.needsScale = d.name, d.modules, d.needsScale
			}
			a, err := p.adapter(t.Context(), assign)
			if err != nil {
				continue // such as an alpha of several elements
			}
			src.manifest.Adapters = []format.Adapter{a}
			if got := len(a.Tensors()); got != len(tensors) {
				t.Errorf("the adapter has %d tensors, want each of %d once", got, len(tensors))
			}
			if len(tensors) == 0 {
				continue
			}
			if err := format.Validate(&src.manifest); err != nil {
				t.Errorf("%q in the dialect %q: %v", text, p.dialect, err)
			}
		}
	})
}

// tensorsOf parses lines of a name and dimensions. It leaves out what a table never holds: names
// that are refused, and names that are there already.
func tensorsOf(text string) (tensors []format.Tensor) {
	seen := make(map[string]bool)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || len(words) > 8 || len(tensors) > 64 || seen[words[0]] ||
			checkName(words[0]) != nil || words[0] == "__metadata__" {
			continue
		}
		t := format.Tensor{Name: words[0], DType: dtype.F32, Shape: []uint64{}}
		for _, w := range words[1:] {
			var n uint64
			fmt.Sscan(w, &n)
			t.Shape = append(t.Shape, n%9)
		}
		seen[words[0]] = true
		tensors = append(tensors, t)
	}
	return tensors
}
