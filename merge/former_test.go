package merge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// shaped is a tied base with adapters that change its shape, and one that does not.
type shaped struct {
	base                string
	plain, head, tokens merge.Adapter // of q, of the head, and with a vocabulary of more rows
}

const tokensBefore, tokensAfter, wide = 1500, 2300, 512

// writeShaped writes them. The embedding has blocks of 1024 rows in a record, so the rows of before
// end within the second one.
func writeShaped(t *testing.T) *shaped {
	t.Helper()
	rng := rand.New(rand.NewPCG(31, 32))
	dir := t.TempDir()
	s := &shaped{base: filepath.Join(dir, "base")}
	const first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	embedding := testkit.Random(rng, "model.embed_tokens.weight", dtype.BF16, 0.02, tokensBefore, wide)
	testkit.Write(t, filepath.Join(s.base, first), testkit.Encode(map[string]string{"format": "pt"}, testkit.Random(rng, "model.norm.weight", dtype.BF16, 1, wide), special(embedding)))
	testkit.Write(t, filepath.Join(s.base, second), testkit.Encode(map[string]string{"format": "pt"}, testkit.Random(rng, "model.q.weight", dtype.BF16, 0.02, 80, wide)))
	testkit.Write(t, filepath.Join(s.base, "model.safetensors.index.json"), []byte(fmt.Sprintf(
		`{"metadata": {"total_size": %d}, "weight_map": {"model.embed_tokens.weight": %q, "model.norm.weight": %[2]q, "model.q.weight": %q}}`,
		2*wide*(tokensBefore+81), first, second)))
	testkit.Write(t, filepath.Join(s.base, "config.json"), []byte(fmt.Sprintf(`{"model_type": "llama", "tie_word_embeddings": true, "vocab_size": %d}`, tokensBefore)))
	testkit.Write(t, filepath.Join(s.base, "tokenizer", "tokens.txt"), []byte("a b c"))
	s.plain = writeLoRA(t, filepath.Join(dir, "plain"), rng, "model.q", 4, 80, wide, 0.004)
	s.head = writeLoRA(t, filepath.Join(dir, "head"), rng, "lm_head", 4, tokensBefore, wide, 0.004)
	tokens := filepath.Join(dir, "tokens")
	testkit.WriteAdapter(t, tokens, 2, 2,
		testkit.Random(rng, "base_model.model.model.q.lora_A.weight", dtype.F32, 1, 2, wide),
		testkit.Random(rng, "base_model.model.model.q.lora_B.weight", dtype.F32, 0.003, 80, 2),
		testkit.Random(rng, "base_model.model.model.embed_tokens.weight", dtype.BF16, 0.02, tokensAfter, wide))
	s.tokens = merge.Adapter{Source: opened(t, tokens), Name: tokens, Weight: 1}
	return s
}

var (
	untie = merge.Options{Reading: merge.Reading{Tied: merge.Untie}}
	grow  = merge.Options{Reading: merge.Reading{Tied: merge.Fold}, GrowVocabulary: true}
)

// merged merges one adapter with a record.
func (s *shaped) merged(t *testing.T, base string, a merge.Adapter, o merge.Options) (out string, rec []byte) {
	t.Helper()
	var b bytes.Buffer
	o.Undo = &b
	p, err := merge.Open(t.Context(), base, []merge.Adapter{a}, o)
	return run(t, p, err), b.Bytes()
}

// removal removes adapters with their records.
func removal(t *testing.T, adapters []merge.Adapter, records ...[]byte) merge.Removal {
	r := merge.Removal{Adapters: anyWeight(adapters)}
	for i, rec := range records {
		r.Records = append(r.Records, record(t, fmt.Sprint("record ", i), rec))
	}
	return r
}

// TestUnmergeOfAnyShape: a removal takes away a head of its own and added rows, with any number of
// workers and in blocks of any size. The record has no more blocks than before the rows came.
func TestUnmergeOfAnyShape(t *testing.T) {
	s := writeShaped(t)
	for _, c := range []struct {
		name     string
		adapter  merge.Adapter
		options  merge.Options
		elements int64
	}{
		{"an untied head", s.head, untie, 0},
		{"a grown vocabulary", s.tokens, grow, wide * (tokensBefore + 80)},
	} {
		var first []byte
		for i, workers := range []int{1, 7} {
			block := []int{4096, 0}[i]
			c.options.Workers, c.options.BlockBytes = workers, block
			merged, rec := s.merged(t, s.base, c.adapter, c.options)
			if first == nil {
				first = rec
			}
			if !bytes.Equal(rec, first) {
				t.Errorf("%s, workers %d, blocks of %d: another record", c.name, workers, block)
			}
			p, err := merge.OpenUnmerge(t.Context(), merged, removal(t, []merge.Adapter{c.adapter}, rec), merge.Options{Workers: workers, BlockBytes: block})
			if got, want := tree(t, run(t, p, err)), tree(t, s.base); !maps.Equal(got, want) {
				t.Errorf("%s, workers %d, blocks of %d: %v, want %v", c.name, workers, block, got, want)
			}
		}
		if most := c.elements*2 + 8<<10; int64(len(first)) > most {
			t.Errorf("%s: the record has %d bytes, want at most %d", c.name, len(first), most)
		}
	}
}

// TestShapesComeOffInTurn: merges of several shapes come off together, or one after the other where
// a later merge changed an added tensor.
func TestShapesComeOffInTurn(t *testing.T) {
	s := writeShaped(t)
	one, first := s.merged(t, s.base, s.plain, merge.Options{})
	two, second := s.merged(t, one, s.tokens, grow)
	p, err := merge.OpenUnmerge(t.Context(), two, removal(t, []merge.Adapter{s.plain, s.tokens}, first, second), merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, s.base); !maps.Equal(got, want) {
		t.Errorf("both: %v, want %v", got, want)
	}
	p, err = merge.OpenSwap(t.Context(), two, removal(t, []merge.Adapter{s.plain, s.tokens}, first, second), []merge.Adapter{s.plain}, merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, one); !maps.Equal(got, want) {
		t.Errorf("a swap of both for the first: %v, want %v", got, want)
	}

	untied, first := s.merged(t, s.base, s.head, untie)
	other := writeLoRA(t, filepath.Join(t.TempDir(), "other"), rand.New(rand.NewPCG(33, 34)), "lm_head", 2, tokensBefore, wide, 0.01)
	two, second = s.merged(t, untied, other, merge.Options{})
	_, err = merge.OpenUnmerge(t.Context(), two, removal(t, []merge.Adapter{s.head, other}, first, second), merge.Options{})
	if !errors.Is(err, fault.Unsupported) || !strings.Contains(fault.Hint(err), "one merge at a time") {
		t.Errorf("both merges into an added head: %v (%s), want a refusal", err, fault.Hint(err))
	}
	p, err = merge.OpenUnmerge(t.Context(), two, removal(t, []merge.Adapter{other}, second), merge.Options{})
	back := run(t, p, err)
	p, err = merge.OpenUnmerge(t.Context(), back, removal(t, []merge.Adapter{s.head}, first), merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, s.base); !maps.Equal(got, want) {
		t.Errorf("one after the other: %v, want %v", got, want)
	}
}

// TestSwapOfShapes: a swap takes an added head or rows out and equals a merge into the base. It
// does not bring new ones in.
func TestSwapOfShapes(t *testing.T) {
	s := writeShaped(t)
	want, wantRecord := s.merged(t, s.base, s.plain, merge.Options{})
	fold := merge.Options{Reading: merge.Reading{Tied: merge.Fold}}
	wantFolded, _ := s.merged(t, s.base, s.head, fold)
	for name, c := range map[string]struct {
		adapter merge.Adapter
		options merge.Options
	}{"untied": {s.head, untie}, "grown": {s.tokens, grow}} {
		merged, rec := s.merged(t, s.base, c.adapter, c.options)
		remove := removal(t, []merge.Adapter{c.adapter}, rec)
		var next bytes.Buffer
		p, err := merge.OpenSwap(t.Context(), merged, remove, []merge.Adapter{s.plain}, merge.Options{Undo: &next})
		swapped := run(t, p, err)
		if !maps.Equal(tree(t, swapped), tree(t, want)) || !bytes.Equal(next.Bytes(), wantRecord) {
			t.Errorf("%s: a swap is not a merge into the base", name)
		}
		p, err = merge.OpenSwap(t.Context(), merged, remove, []merge.Adapter{s.head}, fold)
		if got := run(t, p, err); !maps.Equal(tree(t, got), tree(t, wantFolded)) {
			t.Errorf("%s: a swap for an adapter of both ends is not a merge into the base", name)
		}
		_, err = merge.OpenSwap(t.Context(), merged, remove, []merge.Adapter{s.head}, merge.Options{})
		if !errors.Is(err, fault.Unsupported) || !strings.Contains(fault.Hint(err), "Options.Tied=untie") {
			t.Errorf("%s, and an adapter of the head comes in: %v, want a refusal since the base ties it", name, err)
		}
		for _, in := range []struct {
			adapter merge.Adapter
			options merge.Options
		}{{s.head, untie}, {s.tokens, grow}} {
			_, err := merge.OpenSwap(t.Context(), merged, remove, []merge.Adapter{in.adapter}, in.options)
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(fault.Hint(err), "unmerge first") {
				t.Errorf("%s, and another shape comes in: %v, want a refusal", name, err)
			}
		}
	}
}

// TestWrongRemovalsOfShapesAreNamed: a removal ends without output if anything that it needs is
// another than merge left.
func TestWrongRemovalsOfShapesAreNamed(t *testing.T) {
	s := writeShaped(t)
	merged, rec := s.merged(t, s.base, s.head, untie)
	grown, grownRecord := s.merged(t, s.base, s.tokens, grow)
	edited := func(base, name string, edit func(b []byte) []byte) string {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if b = edit(b); b != nil {
			testkit.Write(t, path, b)
		}
		return dir
	}
	flipAt := func(fromEnd int) func(b []byte) []byte {
		return func(b []byte) []byte { b[len(b)-fromEnd] ^= 1; return b }
	}
	const shard = "model-00001-of-00002.safetensors"
	for _, c := range []struct {
		name    string
		merged  string
		record  []byte
		adapter merge.Adapter
		words   string
	}{
		{"an edited config.json", edited(merged, "config.json", func(b []byte) []byte { return append(b, '\n') }), rec, s.head, `a file "config.json"`},
		{"no config.json", edited(merged, "config.json", func([]byte) []byte { return nil }), rec, s.head, `a file "config.json"`},
		{"a changed value of the added head", edited(merged, shard, flipAt(1)), rec, s.head, "CRC-32"},
		{"a changed added row", edited(grown, shard, flipAt(1)), grownRecord, s.tokens, "CRC-32"},
		{"a changed row from before", edited(grown, shard, flipAt(2*wide*(tokensAfter-1200))), grownRecord, s.tokens, "differs from the merge's output"},
		{"the record of the other merge", merged, grownRecord, s.tokens, "belongs to another merge"},
		{"another adapter", merged, rec, s.plain, `needs the adapter "head"`},
	} {
		parent := t.TempDir()
		p, err := merge.OpenUnmerge(t.Context(), c.merged, removal(t, []merge.Adapter{c.adapter}, c.record), merge.Options{})
		if err == nil {
			_, err = p.Run(context.Background(), filepath.Join(parent, "out"))
			p.Close()
		}
		if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want a mismatch with %q", c.name, err, c.words)
		}
		if left, _ := os.ReadDir(parent); len(left) > 0 {
			t.Errorf("%s: %q was left behind", c.name, left[0].Name())
		}
	}
}

// TestRecordNeedsEqualTwins: a tied base can store its head with other values than its embedding.
// Untying takes the embedding's, and no removal could give the others back.
func TestRecordNeedsEqualTwins(t *testing.T) {
	rng := rand.New(rand.NewPCG(35, 36))
	for _, isEqual := range []bool{true, false} {
		dir := t.TempDir()
		base := filepath.Join(dir, "base")
		embedding := testkit.Random(rng, "model.embed_tokens.weight", dtype.BF16, 0.02, 40, 16)
		head := embedding
		head.Name = "lm_head.weight"
		if !isEqual {
			head = testkit.Random(rng, head.Name, dtype.BF16, 0.02, 40, 16)
		}
		testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, head, embedding))
		testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type": "llama", "tie_word_embeddings": true}`))
		a := writeLoRA(t, filepath.Join(dir, "adapter"), rng, "lm_head", 2, 40, 16, 0.01)
		var rec bytes.Buffer
		p, err := merge.Open(t.Context(), base, []merge.Adapter{a}, merge.Options{Reading: merge.Reading{Tied: merge.Untie}, Undo: &rec})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		merged := filepath.Join(dir, "merged")
		_, err = p.Run(t.Context(), merged)
		if !isEqual {
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "lm_head.weight") {
				t.Errorf("%v, want a refusal of twins that differ", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err = merge.OpenUnmerge(t.Context(), merged, removal(t, []merge.Adapter{a}, rec.Bytes()), merge.Options{})
		if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
			t.Errorf("equal twins: %v, want %v", got, want)
		}
	}
}

// TestUnmergeOfUntiedGGUF: a removal takes output.weight away, and the keys say again what they
// said. A file with other bytes around its tensors than writers of GGUF give it has no record.
func TestUnmergeOfUntiedGGUF(t *testing.T) {
	base, err := os.ReadFile(ggufBases + "tied/base.gguf")
	if err != nil {
		t.Fatal(err)
	}
	a := merge.Adapter{Source: opened(t, ggufBases+"plain/peft"), Name: "peft", Weight: 1}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"as it is": base, "with another byte": append(bytes.Clone(base), 0)} {
		path, merged := filepath.Join(dir, name+".gguf"), filepath.Join(dir, name+" merged.gguf")
		testkit.Write(t, path, content)
		var rec bytes.Buffer
		o := untie
		o.Undo = &rec
		p, err := merge.Open(t.Context(), path, []merge.Adapter{a}, o)
		if name != "as it is" {
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "common writers of GGUF") {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err, fault.Hint(err))
		}
		if _, err := p.Run(t.Context(), merged); err != nil {
			t.Fatal(err)
		}
		p.Close()
		p, err = merge.OpenUnmerge(t.Context(), merged, removal(t, []merge.Adapter{a}, rec.Bytes()), merge.Options{})
		back, err := os.ReadFile(run(t, p, err))
		if err != nil || !bytes.Equal(back, content) {
			t.Errorf("%s: not the base (%v)", name, err)
		}
	}
}

// TestUnmergeOfUntiedSplitGGUF: all parts say how many tensors the model has, also those that the
// adapter does not change, and say it again as before.
func TestUnmergeOfUntiedSplitGGUF(t *testing.T) {
	base, err := os.ReadFile(ggufBases + "tied/base.gguf")
	if err != nil {
		t.Fatal(err)
	}
	g, err := gguf.Read(t.Context(), bytes.NewReader(base), int64(len(base)))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	parts := [][]gguf.Tensor{nil, g.Tensors[:5], g.Tensors[5:]}
	for i, tensors := range parts {
		kvs := []gguf.KV{gguf.Uint32KV("split.no", uint32(i)), gguf.Uint32KV("split.count", uint32(len(parts))), gguf.Int32KV("split.tensors.count", int32(len(g.Tensors)))}
		if i == 0 {
			kvs = slices.Concat(g.KVs, kvs)
		}
		var part bytes.Buffer
		err := gguf.Write(t.Context(), &part, kvs, tensors, func(w io.Writer, k int) error {
			_, err := w.Write(base[tensors[k].Off:][:tensors[k].Size])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Write(t, filepath.Join(dir, fmt.Sprintf("base-%05d-of-%05d.gguf", i+1, len(parts))), part.Bytes())
	}
	a := merge.Adapter{Source: opened(t, ggufBases+"plain/peft"), Name: "peft", Weight: 1}
	var rec bytes.Buffer
	o := untie
	o.Undo = &rec
	p, err := merge.Open(t.Context(), dir, []merge.Adapter{a}, o)
	merged := run(t, p, err)
	for name, hash := range tree(t, dir) {
		if tree(t, merged)[name] == hash {
			t.Errorf("%s has not changed", name)
		}
	}
	p, err = merge.OpenUnmerge(t.Context(), merged, removal(t, []merge.Adapter{a}, rec.Bytes()), merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, dir); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestDamagedRecordsOfShapesAreFound turns a bit of every seventh byte of a record in turn. No
// other base may come out.
func TestDamagedRecordsOfShapesAreFound(t *testing.T) {
	dir := filepath.Join(fixtures, "merge", "tied-sharded-untie")
	c := readFixture(t, dir)
	adapters, err := c.openAdapters(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	var rec bytes.Buffer
	p, err := c.open(t, dir, merge.Options{Undo: &rec})
	merged := run(t, p, err)
	want := tree(t, filepath.Join(fixtures, "bases", c.Base))
	for i := 0; i < rec.Len(); i += 7 {
		damaged := bytes.Clone(rec.Bytes())
		damaged[i] ^= 1 << (i % 8)
		r, err := merge.OpenRecord(t.Context(), "record", bytes.NewReader(damaged), int64(len(damaged)))
		if err != nil {
			continue
		}
		p, err := merge.OpenUnmerge(t.Context(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{r}}, merge.Options{})
		if err != nil {
			continue
		}
		out := filepath.Join(t.TempDir(), "out")
		_, err = p.Run(t.Context(), out)
		p.Close()
		if err == nil && !maps.Equal(tree(t, out), want) {
			t.Fatalf("bit %d of byte %d of the record turned: a different base came out", i%8, i)
		}
	}
}
