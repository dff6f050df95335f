package merge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// head is a case.json of testdata/peft/heads, written by heads.py.
type head struct {
	Class    string   `json:"class"`
	Labels   int      `json:"labels"`
	Added    []string `json:"added"`
	Reshaped []string `json:"reshaped"`
	Prefix   string   `json:"prefix"`
}

// eachHead runs f on every case.
func eachHead(t *testing.T, f func(t *testing.T, dir string, c head)) {
	dirs, err := filepath.Glob(filepath.Join(fixtures, "heads", "*", "case.json"))
	if err != nil || len(dirs) < 10 {
		t.Fatalf("%d cases of heads, want at least 10", len(dirs))
	}
	for _, path := range dirs {
		var c head
		if err := json.Unmarshal([]byte(readText(t, path)), &c); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) { f(t, dir, c) })
	}
}

// openHead plans the merge of the adapter at a path into a base.
func openHead(t *testing.T, base, adapter string, options merge.Options) (*merge.Plan, error) {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, options)
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// TestAddedHeadsEqualPEFT: the output has every tensor that PEFT merges and transformers saves,
// with the same name and shape and with values rounded once. Other tensors of the base stay.
func TestAddedHeadsEqualPEFT(t *testing.T) {
	eachHead(t, func(t *testing.T, dir string, c head) {
		p, err := openHead(t, filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), merge.Options{AddTensors: true})
		if err != nil {
			t.Fatal(err, "\nhint: ", fault.Hint(err))
		}
		out := filepath.Join(t.TempDir(), "out")
		report, err := p.Run(context.Background(), out)
		if err != nil {
			t.Fatal(err)
		}
		base, merged := openCheckpoint(t, filepath.Join(dir, "base")), openCheckpoint(t, out)
		truth := openCheckpoint(t, filepath.Join(dir, "truth.safetensors"))
		var want []string
		for _, name := range base.Names() {
			want = append(want, c.Prefix+name)
		}
		want = append(want, truth.Names()...)
		slices.Sort(want)
		if want = slices.Compact(want); !slices.Equal(merged.Names(), want) {
			t.Fatalf("names of the merged checkpoint: %q, want %q", merged.Names(), want)
		}
		for _, name := range merged.Names() {
			ref, _ := merged.Lookup(name)
			got, d := read(t, merged, name), ref.Tensor.DType
			exact, ok := truth.Lookup(name)
			if !ok {
				if string(got) != string(read(t, base, strings.TrimPrefix(name, c.Prefix))) {
					t.Errorf("%s, which PEFT's model does not have, has changed", name)
				}
				continue
			}
			if first, _ := base.Lookup(base.Names()[0]); d != first.Tensor.DType {
				t.Errorf("%s is stored as %v, the base as %v", name, d, first.Tensor.DType)
			}
			if !slices.Equal(ref.Tensor.Shape, exact.Tensor.Shape) {
				t.Fatalf("%s has shape %d, want %d", name, ref.Tensor.Shape, exact.Tensor.Shape)
			}
			values, want := read(t, truth, name), make([]byte, len(got))
			for i := range len(values) / 8 {
				dtype.Store(d, want, i, dtype.Load(dtype.F64, values, i))
			}
			if string(got) != string(want) {
				t.Errorf("%s: % x, want % x", name, got, want)
			}
		}
		checkAdded(t, c, p, report)
		for _, m := range merged.History() {
			if !slices.Equal(m.Added, c.Added) || !slices.Equal(m.Reshaped, c.Reshaped) {
				t.Errorf("the stamp of %s names %q as added and %q as reshaped, want %q and %q", m.File, m.Added, m.Reshaped, c.Added, c.Reshaped)
			}
		}
	})
}

// checkAdded compares the plan, the report and the warnings with the added tensors.
func checkAdded(t *testing.T, c head, p *merge.Plan, report *merge.Report) {
	t.Helper()
	warnings := strings.Join(p.Warnings(), "\n")
	for _, list := range [][]merge.PlannedTensor{p.Tensors(), report.Replaced} {
		var added, reshaped []string
		for _, tensor := range list {
			if tensor.Added {
				added = append(added, tensor.Tensor)
			}
			if tensor.Was != nil {
				reshaped = append(reshaped, tensor.Tensor)
			}
		}
		slices.Sort(added)
		slices.Sort(reshaped)
		if !slices.Equal(added, c.Added) || !slices.Equal(reshaped, c.Reshaped) {
			t.Errorf("added %q and reshaped %q, want %q and %q", added, reshaped, c.Added, c.Reshaped)
		}
	}
	for _, name := range slices.Concat(c.Added, c.Reshaped) {
		if !strings.Contains(warnings, fmt.Sprintf("%q", name)) {
			t.Errorf("no warning names %s: %s", name, warnings)
		}
	}
	if !strings.Contains(warnings, c.Class) {
		t.Errorf("no warning names the class %s: %s", c.Class, warnings)
	}
}

// TestConfigFollowsTheTask: config.json names the class and the labels; every other field stays.
func TestConfigFollowsTheTask(t *testing.T) {
	eachHead(t, func(t *testing.T, dir string, c head) {
		p, err := openHead(t, filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), merge.Options{AddTensors: true})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		if _, err := p.Run(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		var before, after map[string]any
		for path, config := range map[string]*map[string]any{filepath.Join(dir, "base"): &before, out: &after} {
			if err := json.Unmarshal([]byte(readText(t, path, "config.json")), config); err != nil {
				t.Fatal(err)
			}
		}
		before["architectures"] = []any{c.Class}
		if c.Labels != 2 { // the default of transformers
			names, numbers := make(map[string]any), make(map[string]any)
			for i := range c.Labels {
				names[fmt.Sprint(i)], numbers[fmt.Sprintf("LABEL_%d", i)] = fmt.Sprintf("LABEL_%d", i), float64(i)
			}
			before["id2label"], before["label2id"] = names, numbers
		}
		got, _ := json.Marshal(after)
		if want, _ := json.Marshal(before); string(got) != string(want) {
			t.Errorf("config.json is\n%s\nwant\n%s", got, want)
		}
	})
}

// TestIndexNamesWhatIsAdded: the shard index lists exactly the tensors of the shards, and their
// size.
func TestIndexNamesWhatIsAdded(t *testing.T) {
	for _, name := range []string{"gpt2", "llama"} {
		dir := filepath.Join(fixtures, "heads", name)
		p, err := openHead(t, filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), merge.Options{AddTensors: true})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		if _, err := p.Run(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		var index struct {
			Metadata struct {
				Size int64 `json:"total_size"`
			}
			Map map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal([]byte(readText(t, out, "model.safetensors.index.json")), &index); err != nil {
			t.Fatal(err)
		}
		merged := openCheckpoint(t, out)
		var nBytes int64
		for _, tensor := range merged.Names() {
			ref, _ := merged.Lookup(tensor)
			nBytes += ref.Tensor.NBytes
			if file := merged.Files[ref.File].Name; index.Map[tensor] != file {
				t.Errorf("%s: the index has %s in %q, and it is in %s", name, tensor, index.Map[tensor], file)
			}
		}
		if len(index.Map) != len(merged.Names()) || index.Metadata.Size != nBytes {
			t.Errorf("%s: the index has %d tensors of %d bytes, want %d of %d", name, len(index.Map), index.Metadata.Size, len(merged.Names()), nBytes)
		}
	}
}

// TestWithoutTheFlagTheErrorNamesIt: the error names the missing tensor and the option that adds
// it.
func TestWithoutTheFlagTheErrorNamesIt(t *testing.T) {
	eachHead(t, func(t *testing.T, dir string, c head) {
		_, err := openHead(t, filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), merge.Options{})
		if !errors.Is(err, fault.Mismatch) || !strings.Contains(fault.Hint(err), "Options.AddTensors") {
			t.Fatalf("%v (hint: %s), want a mismatch with a hint of Options.AddTensors", err, fault.Hint(err))
		}
		if name := slices.Concat(c.Added, c.Reshaped)[0]; !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want an error that names %s", err, name)
		}
	})
}

// TestUndoTakesAddedTensorsAway: the base comes back file for file. A merge that reshapes tensors
// or renames them has no record, and the error names one.
func TestUndoTakesAddedTensorsAway(t *testing.T) {
	nRestored := 0
	eachHead(t, func(t *testing.T, dir string, c head) {
		var rec bytes.Buffer
		base := filepath.Join(dir, "base")
		p, err := openHead(t, base, filepath.Join(dir, "adapter"), merge.Options{AddTensors: true, Undo: &rec})
		switch {
		case len(c.Reshaped) > 0:
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), c.Reshaped[0]) {
				t.Errorf("%v, want a refusal that names %s", err, c.Reshaped[0])
			}
			return
		case c.Prefix != "":
			if !errors.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "renames") {
				t.Errorf("%v, want a refusal of other names", err)
			}
			return
		}
		merged := run(t, p, err)
		adapter := merge.Adapter{Source: opened(t, filepath.Join(dir, "adapter")), Weight: math.NaN()}
		p, err = merge.OpenUnmerge(t.Context(), merged, merge.Removal{Adapters: []merge.Adapter{adapter}, Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{})
		if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
			t.Errorf("taken back: %v, want %v", got, want)
		}
		nRestored++
	})
	if nRestored < 4 {
		t.Errorf("%d bases restored, want at least 4", nRestored)
	}
}

// TestAddTensorsOfAFile: a single-file base has no config.json to change, so a warning names the
// fields to set.
func TestAddTensorsOfAFile(t *testing.T) {
	dir := filepath.Join(fixtures, "heads", "bert")
	base := filepath.Join(dir, "base", "model.safetensors")
	p, err := openHead(t, base, filepath.Join(dir, "adapter"), merge.Options{AddTensors: true})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.safetensors")
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	if _, ok := openCheckpoint(t, out).Lookup("classifier.weight"); !ok {
		t.Error("the output has no classifier.weight")
	}
	if warnings := strings.Join(p.Warnings(), "\n"); !strings.Contains(warnings, "set architectures") {
		t.Errorf("no warning names the option to set: %s", warnings)
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 1 {
		t.Errorf("%d files beside the output, want none (%v)", len(left)-1, err)
	}
}

// TestHeadsThatCannotBeAdded: the error gives the true reason, and following its hint works.
func TestHeadsThatCannotBeAdded(t *testing.T) {
	dir := t.TempDir()
	random := func(name string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rand.New(rand.NewPCG(131, 132)), name, dtype.F32, 1, shape...)
	}
	const q, prefix = "model.layers.0.self_attn.q_proj", "base_model.model."
	lora := func(module string) []testkit.Tensor {
		return []testkit.Tensor{random(prefix+module+".lora_A.weight", 2, 4), random(prefix+module+".lora_B.weight", 4, 2)}
	}
	head := func(rows uint64) testkit.Tensor { return random(prefix+"score.weight", rows, 4) }
	trunk := []testkit.Tensor{random(q+".weight", 4, 4), random("model.norm.weight", 4)}
	classifier := append(slices.Clone(trunk), random("score.weight", 4, 4))
	write := func(name string, tensors ...testkit.Tensor) string {
		path := filepath.Join(dir, name)
		testkit.Write(t, filepath.Join(path, "model.safetensors"), testkit.Encode(nil, tensors...))
		testkit.Write(t, filepath.Join(path, "config.json"), []byte(`{"model_type":"llama","tie_word_embeddings":false}`))
		return path
	}
	adapter := func(name string, tensors ...testkit.Tensor) merge.Adapter {
		path := filepath.Join(dir, name)
		testkit.WriteAdapter(t, path, 2, 4, tensors...)
		testkit.Write(t, filepath.Join(path, "adapter_config.json"),
			[]byte(`{"peft_type":"LORA","r":2,"lora_alpha":4,"task_type":"SEQ_CLS"}`))
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return merge.Adapter{Source: src, Name: name, Weight: 1}
	}
	open := func(base string, adapters ...merge.Adapter) error {
		p, err := merge.Open(t.Context(), base, adapters, merge.Options{AddTensors: true})
		if err == nil {
			p.Close()
		}
		return err
	}
	trunkDir, classifierDir := write("trunk", trunk...), write("classifier", classifier...)
	two, three := adapter("two", append(lora(q), head(2))...), adapter("three", append(lora(q), head(3))...)
	alone := adapter("alone", head(2))
	updated := adapter("updated", slices.Concat(lora(q), lora("score"))...)
	for _, c := range []struct {
		adapters   []merge.Adapter
		why, hint  string
		outBase    string // the base and adapter that the hint leads to
		outAdapter merge.Adapter
	}{
		{[]merge.Adapter{two, three}, "two adapters save \"score.weight\" whole, this one with shape [3 4] and an earlier one with [2 4]",
			"model of its own", trunkDir, three},
		{[]merge.Adapter{two, two}, "\"score.weight\" is replaced twice", "model of its own", trunkDir, two},
		{[]merge.Adapter{alone}, "holds only a head, which the base lacks: \"score.weight\"", "as the class that was trained", classifierDir, alone},
		{[]merge.Adapter{updated}, "updates a head that the base lacks, but does not hold its values: \"score.weight\"",
			"with the head that the training began with", classifierDir, updated},
	} {
		err := open(trunkDir, c.adapters...)
		if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), c.why) || !strings.Contains(fault.Hint(err), c.hint) {
			t.Errorf("%v (hint: %s), want %q with a hint of %q", err, fault.Hint(err), c.why, c.hint)
		}
		if err := open(c.outBase, c.outAdapter); err != nil {
			t.Errorf("the way out of %q fails: %v", c.why, err)
		}
	}
}

// TestABiasIsNotAddedToAnotherHead: a bias that comes without its weight does not fit the weight
// that the base has, also where the base's names lack the prefix of the trained model.
func TestABiasIsNotAddedToAnotherHead(t *testing.T) {
	random := func(name string, shape ...uint64) testkit.Tensor {
		return testkit.Random(rand.New(rand.NewPCG(133, 134)), name, dtype.F32, 1, shape...)
	}
	const q, prefix = "layers.0.self_attn.q_proj", "base_model.model."
	dir := t.TempDir()
	testkit.WriteAdapter(t, filepath.Join(dir, "adapter"), 2, 4,
		random(prefix+"model."+q+".lora_A.weight", 2, 4), random(prefix+"model."+q+".lora_B.weight", 4, 2), random(prefix+"score.bias", 4))
	for _, trunk := range []string{"", "model."} {
		base := filepath.Join(dir, "base"+trunk)
		testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil,
			random(trunk+q+".weight", 4, 4), random(trunk+"norm.weight", 4), random("score.weight", 2, 4)))
		testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type":"llama","tie_word_embeddings":false}`))
		if _, err := openHead(t, base, filepath.Join(dir, "adapter"), merge.Options{AddTensors: true}); !errors.Is(err, fault.Mismatch) {
			t.Errorf("a trunk with the prefix %q: %v, want a mismatch", trunk, err)
		}
	}
}
