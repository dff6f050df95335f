package convert_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

const qProj = "base_model.model.q."

// withAdapter writes an adapter and a file of weights beside it, and opens both.
func withAdapter(
	t *testing.T, own []testkit.Tensor, whole ...testkit.Tensor,
) (format.Source, error) {
	t.Helper()
	dir := t.TempDir()
	testkit.WriteAdapter(t, dir, 2, 2, append(ones(qProj+"lora_A.weight", qProj+"lora_B.weight"), own...)...)
	testkit.Write(t, filepath.Join(dir, "whole.safetensors"), testkit.Encode(nil, whole...))
	o := convert.Options{With: []string{filepath.Join(dir, "whole.safetensors")}}
	src, err := convert.Open(t.Context(), dir, o)
	if err == nil {
		t.Cleanup(func() { src.Close() })
	}
	return src, err
}

// replaced lists the targets of the tensors that replace those of the base.
func replaced(src format.Source) (names []string) {
	for _, b := range src.Manifest().Adapters[0].Beside {
		names = append(names, string(b.Action)+" "+b.Target)
	}
	slices.Sort(names)
	return names
}

// TestWholeWeightsReplaceThoseOfTheBase: whatever PEFT and frameworks put into a key, the target is
// the parameter of the model.
func TestWholeWeightsReplaceThoseOfTheBase(t *testing.T) {
	for _, c := range []struct {
		keys []string
		want string
	}{
		{[]string{"norm.weight"}, "norm.weight"},
		{[]string{"base_model.model.norm.weight"}, "norm.weight"},
		{[]string{"module.base_model.model.norm.weight"}, "norm.weight"},
		{[]string{"base_model.model._orig_mod.norm.weight"}, "norm.weight"},
		{[]string{"base_model.model.head.modules_to_save.default.weight"}, "head.weight"},
		{[]string{"base_model.model.head.original_module.weight"}, "head.weight"},
		{[]string{"base_model.model.head.original_module.weight", "base_model.model.head.modules_to_save.default.weight"},
			"head.weight"},
		{[]string{"base_model.model.q.base_layer.weight"}, "q.weight"},
		{[]string{"image_newline"}, "image_newline"},
	} {
		src, err := withAdapter(t, nil, ones(c.keys...)...)
		if err != nil {
			t.Errorf("%q: %v", c.keys, err)
			continue
		}
		if got := replaced(src); !slices.Equal(got, []string{"replace " + c.want}) {
			t.Errorf("%q: %q, want to replace %s", c.keys, got, c.want)
		}
		if err := format.Validate(src.Manifest()); err != nil {
			t.Errorf("%q: %v", c.keys, err)
		}
	}
}

// TestWholeWeightsThatCannotJoinAreRefused: each error says why, and names the key or the file.
func TestWholeWeightsThatCannotJoinAreRefused(t *testing.T) {
	const norm = "base_model.model.lm_head.weight"
	other := testkit.Values(norm, dtype.F32, []uint64{2, 2}, 1, 1, 1, 2)
	for _, c := range []struct {
		own, whole []testkit.Tensor
		want       string // "" if they join
	}{
		{nil, ones(qProj+"lora_A.weight", qProj+"lora_B.weight"), "the file is another adapter"},
		{nil, ones("lora_unet_q.lora_up.weight", "lora_unet_q.lora_down.weight"), "the file is another adapter"},
		{nil, ones("norm.weight", qProj+"lora_A.weight"), `"base_model.model.q.lora_A.weight" belongs to an adapter`},
		{nil, ones("norm.weight", "base_model.model.norm.weight"), "values of one tensor"},
		{nil, ones("input_embeddings", "output_embeddings"), "rows of added tokens"},
		{nil, nil, "holds no tensors"},
		{ones(norm), []testkit.Tensor{other}, `"lm_head.weight" has another value`},
		{ones(norm), ones("lm_head.weight"), ""},
	} {
		src, err := withAdapter(t, c.own, c.whole...)
		switch {
		case c.want == "" && (err != nil || !slices.Equal(replaced(src), []string{"replace lm_head.weight"})):
			t.Errorf("equal values: %v", err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v: %v, want %s", c.whole, err, c.want)
		case c.want != "" && !strings.Contains(err.Error(), "whole.safetensors"):
			t.Errorf("%v names no file", err)
		}
	}
}

// TestWithTakesFiles: a directory, the adapter itself and a missing file are no weights to join,
// and a reader has no files beside it.
func TestWithTakesFiles(t *testing.T) {
	dir := t.TempDir()
	testkit.WriteAdapter(t, dir, 2, 2, ones(qProj+"lora_A.weight", qProj+"lora_B.weight")...)
	for at, want := range map[string]string{
		dir: "is a directory",
		filepath.Join(dir, "adapter_model.safetensors"): "is the adapter itself",
		filepath.Join(dir, "absent.bin"):                "no such file",
	} {
		_, err := convert.Open(t.Context(), dir, convert.Options{With: []string{at}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %s: %v, want %s", at, err, want)
		}
	}
	_, err := convert.Default().OpenReader(t.Context(), strings.NewReader(""), 0, convert.Options{With: []string{"x"}})
	if !errors.Is(err, format.ErrUnsupported) || fault.Hint(err) == "" {
		t.Errorf("with a file and a reader: %v", err)
	}
}

// TestWithFindsFilesOfAnFS: OpenFS takes names in the fs.FS.
func TestWithFindsFilesOfAnFS(t *testing.T) {
	dir := t.TempDir()
	testkit.WriteAdapter(t, filepath.Join(dir, "a"), 2, 2, ones(qProj+"lora_A.weight", qProj+"lora_B.weight")...)
	testkit.Write(t, filepath.Join(dir, "a", "vit.safetensors"), testkit.Encode(nil, ones("visual.weight")...))
	src, err := convert.Default().OpenFS(t.Context(), os.DirFS(dir), "a", convert.Options{With: []string{"a/vit.safetensors"}})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if got := replaced(src); !slices.Equal(got, []string{"replace visual.weight"}) {
		t.Errorf("beside: %q", got)
	}
}
