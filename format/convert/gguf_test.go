package convert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/gguf"
)

const ggufData = "../../testdata/gguf"

// ggufCases have an adapter of PEFT, a base, and for some the file that llama.cpp's converter made.
var ggufCases = []string{"llama", "granite", "mixtral", "qwen2moe", "phi3"}

func openGGUFCase(t *testing.T, path string) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), filepath.Join(ggufData, path), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// ggufOf writes a source in the dialect and returns the file.
func ggufOf(t *testing.T, src format.Source, o convert.CreateOptions) []byte {
	t.Helper()
	var out output.Memory
	sink, err := convert.CreateTo(&out, convert.GGUF(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		t.Fatal(err)
	}
	return out.Files()[""]
}

func configOf(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(ggufData, name, "base", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// contentsOf lists the tensors of a GGUF file with their bytes.
func contentsOf(t *testing.T, p []byte) map[string]string {
	t.Helper()
	f, err := gguf.Read(context.Background(), bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for i := range f.Tensors {
		x := &f.Tensors[i]
		all[x.Name] = fmt.Sprintf("%v %d %x", x.Type, x.Dims, p[x.Off:][:x.Size])
	}
	return all
}

func TestGGUFEqualsThatOfLlamaCpp(t *testing.T) {
	for _, name := range ggufCases {
		src := openGGUFCase(t, name+"/peft")
		got := ggufOf(t, src, convert.CreateOptions{BaseConfig: configOf(t, name)})
		reference, err := os.ReadFile(filepath.Join(ggufData, name, "reference.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		have, want := contentsOf(t, got), contentsOf(t, reference)
		for tensor, content := range want {
			if have[tensor] != content {
				t.Errorf("%s: %s = %.80s, want %.80s", name, tensor, have[tensor], content)
			}
		}
		if len(have) != len(want) {
			t.Errorf("%s: %d tensors, want %d", name, len(have), len(want))
		}
		for _, key := range []string{"general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"} {
			if a, b := keyOf(t, got, key), keyOf(t, reference, key); a != b {
				t.Errorf("%s: %s = %s, want %s", name, key, a, b)
			}
		}
	}
}

func keyOf(t *testing.T, p []byte, key string) string {
	t.Helper()
	f, err := gguf.Read(context.Background(), bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	v, ok := f.Value(key)
	if !ok {
		return "absent"
	}
	return v.String()
}

// A file that was read and written again has the same tensors: names, order of rows, embedding,
// experts.
func TestGGUFComesBack(t *testing.T) {
	for _, name := range ggufCases {
		reference, err := os.ReadFile(filepath.Join(ggufData, name, "reference.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		src := openGGUFCase(t, name+"/reference.gguf")
		got := ggufOf(t, src, convert.CreateOptions{BaseConfig: configOf(t, name)})
		have, want := contentsOf(t, got), contentsOf(t, reference)
		for tensor, content := range want {
			if strings.HasPrefix(name, "granite") {
				content = strings.Replace(content, "BF16", "F32", 1)
			}
			if have[tensor] != content {
				t.Errorf("%s: %s = %.80s, want %.80s", name, tensor, have[tensor], content)
			}
		}
	}
}

// A .lora file keeps the architecture, the tokens and the types, so that it becomes a GGUF file
// with the same tensors and no base is needed.
func TestGGUFComesBackFromAContainer(t *testing.T) {
	tokens := gguf.Uint32sKV("adapter.alora.invocation_tokens", []uint32{27, 91})
	files := map[string][]byte{
		"tokens": ggufFile(t, ggufKeys("gpt-oss", tokens), ggufPair("blk.3.attn_q.weight", []uint64{8, 2}, []uint64{2, 4})...),
		"bf16":   ggufOf(t, openGGUFCase(t, "llama/peft"), convert.CreateOptions{BaseConfig: configOf(t, "llama"), DType: dtype.BF16}),
		"f16":    ggufOf(t, openGGUFCase(t, "phi3/peft"), convert.CreateOptions{Architecture: "phi3", DType: dtype.F16}),
	}
	for _, name := range ggufCases {
		reference, err := os.ReadFile(filepath.Join(ggufData, name, "reference.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = reference
	}
	for name, file := range files {
		src, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "a.lora")
		sink, err := convert.Create(path, convert.LoRA(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), sink, src); err != nil {
			t.Fatal(err)
		}
		container, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { container.Close() })
		got := ggufOf(t, container, convert.CreateOptions{})
		have, want := contentsOf(t, got), contentsOf(t, file)
		if !maps.Equal(have, want) {
			t.Errorf("%s: other tensors come back: %.300v, want %.300v", name, have, want)
		}
		for _, key := range []string{"general.architecture", "adapter.lora.alpha", tokens.Key} {
			if a, b := keyOf(t, got, key), keyOf(t, file, key); a != b {
				t.Errorf("%s: %s = %s, want %s", name, key, a, b)
			}
		}
	}
}

// One alpha says what rsLoRA and patterns mean, with powers of two in the factors.
func TestGGUFSaysTheScaleOfEveryLayer(t *testing.T) {
	for _, c := range []struct {
		name, alpha, remark string
	}{
		{"rslora", "11.3137", "alpha is rounded to float32"}, // 8·√2, at r = 2
		{"pattern", "8", ""}, // 2, 8 and 32
		{"uneven", "absent", "A is rounded to F32, which"}, // 3, 5 and 8
	} {
		src := openGGUFCase(t, c.name+"/peft")
		o := convert.CreateOptions{BaseConfig: configOf(t, c.name)}
		file := ggufOf(t, src, o)
		if got := keyOf(t, file, "adapter.lora.alpha"); !strings.HasPrefix(got, c.alpha) {
			t.Errorf("%s: alpha %s, want %s", c.name, got, c.alpha)
		}
		remarks, err := convert.Remarks(t.Context(), "out.gguf", convert.GGUF(), src, o)
		if text := strings.Join(remarks, "\n"); err != nil || !strings.Contains(text, c.remark) || (c.remark == "") != (text == "") {
			t.Errorf("%s: remarks %q, %v, want %q", c.name, text, err, c.remark)
		}
		again, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		tolerance := 0.0
		if c.remark != "" {
			tolerance = 1.0 / (1 << 24) // one number of each product is rounded
		}
		compareScaled(t, c.name, again, src, tolerance)
	}
}

// compareScaled compares s·B·A of all layers, up to a relative error of each element.
func compareScaled(t *testing.T, name string, got, want format.Source, tolerance float64) {
	t.Helper()
	products := func(src format.Source) map[string][]float64 {
		all := make(map[string][]float64)
		m := src.Manifest()
		for _, l := range m.Adapters[0].Layers {
			load := func(role format.Role) ([]float64, []uint64) {
				tensor := &m.Tensors[l.Roles[role]]
				p := make([]byte, tensor.NBytes())
				if err := src.ReadBlobAt(p, l.Roles[role], 0); err != nil {
					t.Fatal(err)
				}
				v := make([]float64, tensor.Elements())
				for i := range v {
					v[i] = dtype.Load(tensor.DType, p, i)
				}
				return v, tensor.Shape
			}
			a, sa := load(format.RoleA)
			b, sb := load(format.RoleB)
			r, n := int(sa[0]), int(sa[1])
			isPaired := slices.Contains(m.Adapters[0].Requires, format.Requirement{Feature: format.FeatureRotaryPairs, Where: l.Module})
			for i := range int(sb[0]) {
				row := i
				if isPaired { // heads of four rows: 0 2 1 3
					row = i/4*4 + []int{0, 2, 1, 3}[i%4]
				}
				for k := range n {
					x := 0.0
					for q := range r {
						x += l.Scale() * b[row*r+q] * a[q*n+k]
					}
					all[l.Module] = append(all[l.Module], x)
				}
			}
		}
		return all
	}
	have, all := products(got), products(want)
	for module, values := range all {
		for i, x := range values {
			// The terms are below 1; each has the error that the remark states, and both sums have
			// some units of 2⁻⁵³ of their own.
			if d := math.Abs(have[module][i] - x); d > 4*tolerance+16.0/(1<<53) {
				t.Fatalf("%s: element %d of %s is %v, want %v", name, i, module, have[module][i], x)
			}
		}
	}
}

// The factors of GPT-2's Conv1D are stored as those of any linear layer.
func TestGGUFOfConv1D(t *testing.T) {
	src := openGGUFCase(t, "gpt2/peft")
	file := ggufOf(t, src, convert.CreateOptions{BaseConfig: configOf(t, "gpt2")})
	f, err := gguf.Read(context.Background(), bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]uint64{ // llama.cpp: a.ne[0] = base.ne[0], b.ne[1] = base.ne[1]
		"blk.0.attn_qkv.weight.lora_a": {24, 4}, "blk.0.attn_qkv.weight.lora_b": {4, 72},
		"blk.0.attn_output.weight.lora_a": {24, 4}, "blk.0.attn_output.weight.lora_b": {4, 24},
		"blk.0.ffn_up.weight.lora_a": {24, 4}, "blk.0.ffn_up.weight.lora_b": {4, 96},
		"blk.0.ffn_down.weight.lora_a": {96, 4}, "blk.0.ffn_down.weight.lora_b": {4, 24},
	}
	for _, x := range f.Tensors {
		if !slices.Equal(x.Dims, want[x.Name]) {
			t.Errorf("%s has ne %d, want %d", x.Name, x.Dims, want[x.Name])
		}
	}
	if len(f.Tensors) != len(want) {
		t.Errorf("%d tensors, want %d", len(f.Tensors), len(want))
	}
}

func TestGGUFRoundsToNarrowTypesAndSaysSo(t *testing.T) {
	src := openGGUFCase(t, "llama/peft")
	for _, d := range []dtype.Type{dtype.F16, dtype.BF16} {
		o := convert.CreateOptions{BaseConfig: configOf(t, "llama"), DType: d}
		file := ggufOf(t, src, o)
		remarks, err := convert.Remarks(t.Context(), "out.gguf", convert.GGUF(), src, o)
		if err != nil || len(remarks) != 1 || !strings.Contains(remarks[0], "rounded to "+d.String()) {
			t.Errorf("%v: remarks %q, %v", d, remarks, err)
		}
		for name, content := range contentsOf(t, file) {
			if !strings.HasPrefix(content, d.String()+" ") {
				t.Errorf("%s is %.10s, want %v", name, content, d)
			}
		}
	}
}

func TestGGUFRefusesByName(t *testing.T) {
	ctx := t.Context()
	refused := func(what string, src format.Source, o convert.CreateOptions, want string) {
		t.Helper()
		err := convert.Check(ctx, filepath.Join(t.TempDir(), "out.gguf"), convert.GGUF(), src, o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	llama := openGGUFCase(t, "llama/peft")
	refused("no base", llama, convert.CreateOptions{}, "which architecture")
	refused("architecture alone", llama, convert.CreateOptions{Architecture: "llama"}, "size of a head")
	refused("unknown", llama, convert.CreateOptions{Architecture: "rwkv7"}, `"rwkv7" is not known`)
	refused("another base", llama, convert.CreateOptions{Architecture: "gpt2"}, `no tensor of the architecture "gpt2"`)
	refused("unknown type", llama, convert.CreateOptions{BaseConfig: []byte(`{"model_type": "t5"}`)}, `a "t5"`)
	refused("dtype", llama, convert.CreateOptions{Architecture: "qwen2", DType: dtype.F64}, "dtype F64")
	refused("tied head", llama, convert.CreateOptions{BaseConfig: []byte(`{"model_type": "llama", "head_dim": 4, "tie_word_embeddings": true}`)}, "is tied")
	experts := openGGUFCase(t, "mixtral/peft")
	refused("experts", experts, convert.CreateOptions{BaseConfig: []byte(`{"model_type": "mixtral", "head_dim": 4}`)}, "how many the base has")
	b := format.NewBuilder("test")
	b.Linear("model.layers.0.self_attn.q_proj", 1, 1, format.Float32s([]float32{1, 2}), format.Float32s([]float32{1, 2})).
		Magnitude(format.Float32s([]float32{1, 2}))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	refused("DoRA", src, convert.CreateOptions{Architecture: "qwen2"}, `requires "dora"`)
}

// TestGGUFNames compares the tables with gguf-py's: each name there and back.
func TestGGUFNames(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(ggufData, "names.txt"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		tensor, module := convert.GGUFNames(f[0], f[1], f[2])
		if tensor == "" { // gguf-py's tables also have names of other models
			continue
		}
		n++
		if tensor != f[2] || module != f[1] {
			t.Errorf("%s: %s is %s, and that is %s; want %s", f[0], f[1], tensor, module, f[2])
		}
	}
	if n < 130 {
		t.Errorf("the tables have %d of the names, want at least 130", n)
	}
}

// ggufFile composes a file; a nil kv is left out of the keys that every adapter has.
func ggufFile(t *testing.T, kvs []gguf.KV, tensors ...gguf.Tensor) []byte {
	t.Helper()
	var b bytes.Buffer
	err := gguf.Write(t.Context(), &b, kvs, tensors, func(w io.Writer, i int) error {
		n, size := 1, map[gguf.Type]int{gguf.F32: 4, gguf.F16: 2, gguf.F64: 8, 2: 18}[tensors[i].Type]
		for _, d := range tensors[i].Dims {
			n *= int(d)
		}
		if tensors[i].Type == 2 {
			n /= 32
		}
		for k := range n * size {
			if _, err := w.Write([]byte{byte(k % 60)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ggufKeys(architecture string, more ...gguf.KV) []gguf.KV {
	return append([]gguf.KV{gguf.TextKV("general.architecture", architecture), gguf.TextKV("general.type", "adapter"), gguf.TextKV("adapter.type", "lora")}, more...)
}

func ggufPair(name string, a, b []uint64) []gguf.Tensor {
	return []gguf.Tensor{{Name: name + ".lora_a", Type: gguf.F32, Dims: a}, {Name: name + ".lora_b", Type: gguf.F32, Dims: b}}
}

func TestGGUFAdaptersAreDescribed(t *testing.T) {
	q := ggufPair("blk.3.attn_q.weight", []uint64{8, 2}, []uint64{2, 4})
	for name, c := range map[string]struct {
		file []byte
		want string // kind, rank and scale of the first layer, and the requirements
	}{
		"alpha":        {ggufFile(t, ggufKeys("llama", gguf.Float32KV("adapter.lora.alpha", 3)), q...), "linear 2 1.5 [{rotary-pairs model.layers.3.self_attn.q_proj}]"},
		"alpha 0":      {ggufFile(t, ggufKeys("qwen2", gguf.Float32KV("adapter.lora.alpha", 0)), q...), "linear 2 1 []"},
		"alpha absent": {ggufFile(t, ggufKeys("gemma3"), q...), "linear 2 1 []"},
		"embedding":    {ggufFile(t, ggufKeys("llama"), ggufPair("token_embd.weight", []uint64{2, 9}, []uint64{2, 4})...), "embedding 2 1 []"},
		"experts": {ggufFile(t, ggufKeys("qwen3moe"), ggufPair("blk.0.ffn_up_exps.weight", []uint64{8, 2, 3}, []uint64{2, 4, 3})...),
			"other 2 1 [{expert-factors model.layers.0.mlp.experts.up_proj: lora_a [3 2 8], lora_b [3 4 2]}]"},
		"alora": {ggufFile(t, ggufKeys("gpt-oss", gguf.Uint32sKV("adapter.alora.invocation_tokens", []uint32{5, 7})), q...),
			"linear 2 1 [{alora alora_invocation_tokens = [5, 7]}]"},
		"a half": {ggufFile(t, ggufKeys("qwen2"), q[0]), "other 1 1 [{missing-factor model.layers.3.self_attn.q_proj: blk.3.attn_q.weight.lora_b}]"},
		"a norm": {ggufFile(t, ggufKeys("qwen2"), append(q, gguf.Tensor{Name: "blk.3.attn_norm.weight", Type: gguf.F32, Dims: []uint64{8}})...),
			"linear 2 1 [{unknown-tensor blk.3.attn_norm.weight}]"},
		"ranks": {ggufFile(t, ggufKeys("qwen2"), ggufPair("output.weight", []uint64{8, 2}, []uint64{3, 4})...),
			"other 1 1 [{factor-shape lm_head: lora_a [2 8], lora_b [4 3]}]"},
		"experts that differ": {ggufFile(t, ggufKeys("qwen3moe"), ggufPair("blk.0.ffn_up_exps.weight", []uint64{8, 2, 3}, []uint64{2, 4, 2})...),
			"other 1 1 [{factor-shape model.layers.0.mlp.experts.up_proj: lora_a [3 2 8], lora_b [2 4 2]}]"},
	} {
		src, err := convert.OpenReader(t.Context(), bytes.NewReader(c.file), int64(len(c.file)), convert.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := src.Manifest()
		if err := format.Validate(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		l := &m.Adapters[0].Layers[0]
		if got := fmt.Sprintf("%s %d %v %v", l.Kind, l.Rank, l.Scale(), m.Adapters[0].Requires); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestGGUFFilesThatAreNoAdapterAreRefused(t *testing.T) {
	q := ggufPair("blk.3.attn_q.weight", []uint64{8, 2}, []uint64{2, 4})
	q4 := []gguf.Tensor{{Name: "blk.0.attn_q.weight.lora_a", Type: 2, Dims: []uint64{32, 2}}}
	for name, c := range map[string]struct {
		file    []byte
		options convert.Options
		want    string
	}{
		"a model":      {ggufFile(t, []gguf.KV{gguf.TextKV("general.architecture", "llama")}), convert.Options{}, "holds a model, not an adapter"},
		"a vocabulary": {ggufFile(t, []gguf.KV{gguf.TextKV("general.type", "mmproj")}), convert.Options{}, "holds a mmproj"},
		"type":         {ggufFile(t, []gguf.KV{gguf.Uint32KV("general.type", 1)}), convert.Options{}, "general.type is of type uint32"},
		"control":      {ggufFile(t, []gguf.KV{gguf.TextKV("general.type", "adapter"), gguf.TextKV("adapter.type", "control_vector")}), convert.Options{}, `adapter.type is "control_vector"`},
		"architecture": {ggufFile(t, ggufKeys("rwkv7"), q...), convert.Options{}, `architecture "rwkv7"`},
		"alpha of u32": {ggufFile(t, ggufKeys("llama", gguf.Uint32KV("adapter.lora.alpha", 16)), q...), convert.Options{}, "adapter.lora.alpha is 16 (uint32)"},
		"alpha NaN":    {ggufFile(t, ggufKeys("llama", gguf.Float32KV("adapter.lora.alpha", float32(math.NaN()))), q...), convert.Options{}, "adapter.lora.alpha is NaN"},
		"tokens":       {ggufFile(t, ggufKeys("llama", gguf.TextKV("adapter.alora.invocation_tokens", "5")), q...), convert.Options{}, "invocation_tokens is"},
		"quantised":    {ggufFile(t, ggufKeys("llama"), q4...), convert.Options{}, "stored as Q4_0"},
		"a scale":      {ggufFile(t, ggufKeys("llama"), q...), convert.Options{Scale: 2}, "this one says it"},
		"cut":          {ggufFile(t, ggufKeys("llama"), q...)[:200], convert.Options{}, "left"},
		"another file": {[]byte("GGUF\x03"), convert.Options{}, "more"},
		"--from":       {bytes.Repeat([]byte("x"), 100), convert.Options{From: "gguf"}, ""},
	} {
		_, err := convert.OpenReader(t.Context(), bytes.NewReader(c.file), int64(len(c.file)), c.options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Any range of a tensor that the file stores transposed reads as a part of the whole.
func TestGGUFReadsPartsOfAnEmbedding(t *testing.T) {
	file := ggufFile(t, ggufKeys("llama"), ggufPair("token_embd.weight", []uint64{3, 5}, []uint64{3, 4})...)
	src, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 60)
	if err := src.ReadBlobAt(whole, 0, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		for k := range 5 {
			for b := range 4 {
				if got, want := whole[4*(i*5+k)+b], byte((4*(k*3+i)+b)%60); got != want {
					t.Fatalf("byte %d of element %d, %d is %d, want %d", b, i, k, got, want)
				}
			}
		}
	}
	for from := range 60 {
		for to := from; to <= 60; to++ {
			p := make([]byte, to-from)
			if err := src.ReadBlobAt(p, 0, int64(from)); err != nil || !bytes.Equal(p, whole[from:to]) {
				t.Fatalf("bytes %d to %d are %x, %v, want %x", from, to, p, err, whole[from:to])
			}
		}
	}
}

// The values of Q8_0 are those that gguf-py decodes (values.txt), in whole and in parts, and also
// where the file stores a matrix transposed.
func TestGGUFReadsBlocks(t *testing.T) {
	src := openGGUFCase(t, "blocks/reference.gguf")
	m := src.Manifest()
	note := "5 of 6 tensors are stored as Q8_0; F32 holds their values exactly"
	if err := format.Validate(m); err != nil || !slices.Equal(m.Notes, []string{note}) {
		t.Errorf("%v, notes %q, want %q", err, m.Notes, note)
	}
	text, err := os.ReadFile(filepath.Join(ggufData, "blocks", "values.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		i := slices.IndexFunc(m.Tensors, func(x format.Tensor) bool { return x.Name == f[0] })
		whole := blobOf(t, src, i)
		for from := 0; from < len(whole); from += 97 {
			for _, n := range []int{1, 4, 130, 1111} {
				p := make([]byte, min(n, len(whole)-from))
				if err := src.ReadBlobAt(p, i, int64(from)); err != nil || !bytes.Equal(p, whole[from:][:len(p)]) {
					t.Fatalf("%s: %d bytes from %d differ from the whole, %v", f[0], len(p), from, err)
				}
			}
		}
		x := &m.Tensors[i]
		values := make([]byte, 4*x.Elements())
		for k := range int(x.Elements()) {
			at := k
			if f[0] == "token_embd.weight.lora_a" {
				at = k%int(x.Shape[1])*int(x.Shape[0]) + k/int(x.Shape[1])
			}
			dtype.Store(dtype.F32, values, at, dtype.Load(x.DType, whole, k))
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(values)); got != f[2] {
			t.Errorf("%s: the values have the digest %s, want %s", f[0], got, f[2])
		}
	}
	o := convert.CreateOptions{BaseConfig: configOf(t, "blocks")}
	file := ggufOf(t, src, o)
	again, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Tensors {
		k := slices.IndexFunc(again.Manifest().Tensors, func(x format.Tensor) bool { return x.Name == m.Tensors[i].Name })
		if have := blobOf(t, again, k); m.Tensors[i].DType == dtype.F32 && !bytes.Equal(have, blobOf(t, src, i)) {
			t.Errorf("%s has other values when it was written and read", m.Tensors[i].Name)
		}
	}
}

func blobOf(t *testing.T, src format.Source, i int) []byte {
	t.Helper()
	p := make([]byte, src.Manifest().Tensors[i].NBytes())
	if err := src.ReadBlobAt(p, i, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// With the base's heads, the rows of q and k come back in the order of PEFT's file.
func TestWithHeadsGivesTheRowsOfPEFT(t *testing.T) {
	peft := openGGUFCase(t, "llama/peft")
	src, err := convert.WithHeads(openGGUFCase(t, "llama/reference.gguf"), configOf(t, "llama"))
	if err != nil {
		t.Fatal(err)
	}
	if err := format.Validate(src.Manifest()); err != nil || len(src.Manifest().Adapters[0].Requires) > 0 {
		t.Errorf("%v, requires %v, want nothing", err, src.Manifest().Adapters[0].Requires)
	}
	equalLines(t, "the adapter", contents(t, src), contents(t, peft))
	i := src.Manifest().Adapters[0].Layers[1].Roles[format.RoleB]
	whole := make([]byte, src.Manifest().Tensors[i].NBytes())
	if err := src.ReadBlobAt(whole, i, 0); err != nil {
		t.Fatal(err)
	}
	part := make([]byte, 61)
	if err := src.ReadBlobAt(part, i, 13); err != nil || !bytes.Equal(part, whole[13:13+61]) {
		t.Errorf("a part is %x, %v, want %x", part, err, whole[13:13+61])
	}
	if _, err := convert.WithHeads(openGGUFCase(t, "llama/reference.gguf"), []byte(`{"head_dim": 3}`)); err == nil {
		t.Error("heads of three rows: no error")
	}
}

// The invocation tokens of an aLoRA go along: from PEFT's configuration, and from a GGUF file.
func TestGGUFKeepsInvocationTokens(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"adapter_model.safetensors", "adapter_config.json"} {
		p, err := os.ReadFile(filepath.Join(ggufData, "pattern", "peft", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "adapter_config.json" {
			p = bytes.Replace(p, []byte("{"), []byte(`{"alora_invocation_tokens": [27, 91], `), 1)
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	o := convert.CreateOptions{Architecture: "qwen3"}
	file := ggufOf(t, src, o)
	again, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := format.Requirement{Feature: format.FeatureALoRA, Where: "alora_invocation_tokens = [27, 91]"}
	if got := again.Manifest().Adapters[0].Requires; !slices.Equal(got, []format.Requirement{want}) {
		t.Errorf("requires %v, want %v", got, want)
	}
	if twice := ggufOf(t, again, o); !bytes.Equal(twice, file) {
		t.Error("the file changes when it is read and written again")
	}
}
