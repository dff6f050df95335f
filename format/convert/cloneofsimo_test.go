package convert_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// walked returns the modules of the U-Net in the order in which the classes of diffusers 0.11.1
// list them.
func walked(t *testing.T) []string {
	t.Helper()
	names := strings.Fields(string(read(t, filepath.Join(testdata, "cloneofsimo/unet.txt"))))
	if len(names) != 144 {
		t.Fatalf("%d modules, want 144", len(names))
	}
	return names
}

// unetFactors returns the factors of a U-Net under cloneofsimo's keys, with blocks of width 2 and
// its multiples. The first value of each factor is the number of its layer.
func unetFactors(names []string) (tensors []testkit.Tensor) {
	width := map[string]uint64{
		"down_blocks.0": 2, "down_blocks.1": 4, "down_blocks.2": 8,
		"up_blocks.1": 8, "up_blocks.2": 4, "up_blocks.3": 2, "mid_block.attentions": 8,
	}
	for i, name := range names {
		parts := strings.Split(name, ".")
		m := width[parts[0]+"."+parts[1]]
		n := m
		switch {
		case strings.HasSuffix(name, "ff.net.0.proj"):
			m = 8 * n
		case strings.HasSuffix(name, "attn2.to_k"), strings.HasSuffix(name, "attn2.to_v"):
			n = 6
		}
		up, down := make([]float64, m), make([]float64, n)
		up[0], down[0] = float64(i), float64(i)
		key := fmt.Sprintf("unet:%d:", i)
		tensors = append(tensors,
			testkit.Values(key+"up", dtype.F16, []uint64{m, 1}, up...),
			testkit.Values(key+"down", dtype.F16, []uint64{1, n}, down...))
	}
	return tensors
}

// numbersOf returns the modules of a source by the first value of their A and B, which must agree.
func numbersOf(t *testing.T, src format.Source, number func(first float64,
	isB bool) int) map[int]string {
	t.Helper()
	modules := make(map[int]string)
	for _, l := range src.Manifest().Adapters[0].Layers {
		a, err1 := format.ReadFloats(t.Context(), src, l.Roles[format.RoleA])
		b, err2 := format.ReadFloats(t.Context(), src, l.Roles[format.RoleB])
		if err1 != nil || err2 != nil || number(a[0], false) != number(b[0], true) ||
			l.Scale() != 1 {
			t.Errorf("%s: A %v (%v), B %v (%v), scale %v", l.Module, a[0], err1, b[0], err2,
				l.Scale())
		}
		modules[number(a[0], false)] = l.Module
	}
	return modules
}

// TestCloneofsimosNumbersAreModules: with and without GEGLU, and with embeddings beside.
func TestCloneofsimosNumbersAreModules(t *testing.T) {
	all := walked(t)
	first := slices.DeleteFunc(slices.Clone(all),
		func(name string) bool { return strings.HasSuffix(name, "ff.net.0.proj") })
	for _, names := range [][]string{all, first} {
		path := write(t, map[string]string{"unet": `["CrossAttention"]`, "<s1>": "<embed>"},
			append(unetFactors(names), zerosOf("<s1>", dtype.F32, 6))...)
		src := open(t, path, convert.Options{})
		got := numbersOf(t, src, func(first float64, _ bool) int { return int(first) })
		for i, name := range names {
			if got[i] != "unet."+name {
				t.Errorf("layer %d of %d is %s, want %s", i, len(names), got[i], "unet."+name)
			}
		}
		equalLines(t, "requirements", requirements(src), []string{"textual-inversion <s1>"})
		if a := src.Manifest().Adapters[0]; a.Dialect != "cloneofsimo" ||
			!strings.Contains(convert.RecognisedBy(src), "unet:") {
			t.Errorf("dialect %s, recognised by %s", a.Dialect, convert.RecognisedBy(src))
		}
		comesBack(t, path)
	}
}

// TestCloneofsimosLists: pickles of a text encoder and of a U-Net without GEGLU, whose values say
// their place in the list.
func TestCloneofsimosLists(t *testing.T) {
	number := func(first float64, isB bool) int {
		if isB {
			first++ // up stands before down
		}
		return int(first) / 2
	}
	var unet, text []string
	for _, name := range walked(t) {
		if !strings.HasSuffix(name, "ff.net.0.proj") {
			unet = append(unet, "unet."+name)
		}
	}
	for i := range 2 {
		for _, name := range []string{"k_proj", "v_proj", "q_proj", "out_proj"} {
			text = append(text, fmt.Sprintf("text_encoder.text_model.encoder.layers.%d.self_attn.%s", i, name))
		}
	}
	for file, want := range map[string][]string{"unet.pt": unet, "text_encoder.pt": text} {
		src := open(t, filepath.Join(testdata, "cloneofsimo", file), convert.Options{})
		got := numbersOf(t, src, number)
		for i, name := range want {
			if got[i] != name || len(got) != len(want) {
				t.Errorf("%s: layer %d of %d is %s, want %s of %d", file, i, len(got), got[i],
					name, len(want))
			}
		}
		if sign := convert.RecognisedBy(src); !strings.Contains(sign, "a list of tensors") {
			t.Errorf("%s: recognised by %s", file, sign)
		}
	}
}

// TestAListInAnotherOrderIsRefusedByName: sizes that no model of the time has.
func TestAListInAnotherOrderIsRefusedByName(t *testing.T) {
	tensors := unetFactors(walked(t))
	for _, c := range []struct {
		tensors []testkit.Tensor
		want    string
	}{
		{tensors[:2*143], "unet 143 pairs"},
		{tensors[1:], "unet 144 pairs"},
		{append(unetFactors(walked(t)[1:]), unetFactors(walked(t)[:1])...), "unet 143 pairs"},
		{[]testkit.Tensor{zerosOf("vae:0:up", dtype.F32, 2, 1), zerosOf("vae:0:down", dtype.F32,
			1, 2)}, "vae 1 pair"},
	} {
		var kept []testkit.Tensor
		seen := make(map[string]bool)
		for _, x := range c.tensors {
			if !seen[x.Name] {
				kept = append(kept, x)
			}
			seen[x.Name] = true
		}
		path := write(t, nil, kept...)
		src := open(t, path, convert.Options{})
		q := requirements(src)
		if len(q) != 1 || !strings.HasPrefix(q[0], "unknown-tensor "+c.want) ||
			len(src.Manifest().Adapters[0].Layers) != 0 {
			t.Errorf("requirements %q, want %s", q, c.want)
		}
		comesBack(t, path)
	}
	list := filepath.Join(testdata, "pickle/refuse/list.bin") // two tensors
	refuses(t, list, convert.Options{}, "cloneofsimo")
}
