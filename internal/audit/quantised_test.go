package audit_test

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/audit"
	inner "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestMergesIntoQuantisedBasesAreJudged: decoded weights without an update are the base's, whether
// the output keeps other codes or none; and a weight that has changed is not.
func TestMergesIntoQuantisedBasesAreJudged(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const rows, cols, r = 64, 48, 2
	write := func(t *testing.T, change bool, others ...testkit.Tensor) string {
		t.Helper()
		rng := rand.New(rand.NewPCG(3, 4))
		var tensors []testkit.Tensor
		for _, leaf := range []string{"self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj"} {
			codes := testkit.Tensor{Name: "model.layers.0." + leaf + ".weight", DType: dtype.F8E4M3, Shape: []uint64{rows, cols}, Data: make([]byte, rows*cols)}
			for i := range codes.Data {
				codes.Data[i] = byte(rng.IntN(0x70)) | byte(rng.IntN(2)<<7)
			}
			if change && leaf == "self_attn.k_proj" {
				codes.Data[17] ^= 1
			}
			tensors = append(tensors, codes, testkit.Random(rng, codes.Name+"_scale", dtype.F32, 0.01, rows, 1))
		}
		path := t.TempDir() + "/base.safetensors"
		testkit.Write(t, path, testkit.Encode(nil, append(tensors, others...)...))
		return path
	}
	b := format.NewBuilder("made up")
	factor := func(shape ...uint64) format.Data {
		return format.Bytes(dtype.F32, testkit.Random(rng, "", dtype.F32, 0.1, shape...).Data, shape...)
	}
	b.Linear("model.layers.0.self_attn.o_proj", r, 1, factor(r, cols), factor(rows, r))
	b.Linear("model.layers.0.self_attn.q_proj", r, 1, factor(r, cols), factor(rows, r))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	adapters := []merge.Adapter{{Source: src, Name: "a", Weight: 1}}
	base := write(t, false)
	for _, options := range []merge.Options{{}, {Dequantise: true}, {Dequantise: true, OutDType: dtype.F32}} {
		out := mergePath(t, base, adapters, options)
		if r := auditPaths(t, base, out, adapters); r.Verdict != audit.AsClaimed || len(r.Warnings) > 0 {
			t.Errorf("%+v: the verdict is %v, with the warnings %q: %+v", options, r.Verdict, r.Warnings, r.Tensors)
		}
		if r := auditPaths(t, base, out, adapters); (r.Casts != "") != (options.OutDType != 0) {
			t.Errorf("%+v: the casts are %q", options, r.Casts)
		}
		r := auditPaths(t, write(t, true), out, adapters)
		wrong := slices.IndexFunc(r.Tensors, func(x audit.Tensor) bool { return x.Verdict == audit.NotAsClaimed })
		if r.Verdict != audit.NotAsClaimed || wrong < 0 || !strings.Contains(r.Tensors[wrong].Tensor, "k_proj") {
			t.Errorf("%+v: of a base with another code in k_proj the verdict is %v: %+v", options, r.Verdict, r.Tensors)
		}
	}
	unreadable := testkit.Tensor{Name: "model.layers.1.mlp.up_proj.qweight", DType: dtype.I32, Shape: []uint64{4, 8}, Data: make([]byte, 4*4*8)}
	base = write(t, false, unreadable)
	out := mergePath(t, base, adapters, merge.Options{})
	if r := auditPaths(t, base, out, adapters); r.Verdict != audit.AsClaimed || len(r.Tensors) != 5 {
		t.Errorf("with a weight that cannot be read the verdict is %v: %+v", r.Verdict, r.Tensors)
	}
	plain := testkit.Random(rng, "model.layers.1.mlp.up_proj.weight", dtype.BF16, 1, 8, 4)
	got := auditPaths(t, write(t, false, plain), out, adapters)
	if i := slices.IndexFunc(got.Tensors, func(x audit.Tensor) bool { return x.Tensor == plain.Name }); i < 0 || got.Tensors[i].Finding != audit.Missing || !strings.Contains(got.Tensors[i].Text, "cannot be read") {
		t.Errorf("of a weight that the merged checkpoint has in codes that cannot be read, the audit says %+v", got.Tensors)
	}
	unreadable.Data[9]++
	if r := auditPaths(t, write(t, false, unreadable), out, adapters); r.Verdict != audit.NotAsClaimed {
		t.Errorf("with another code in a weight that cannot be read the verdict is %v: %+v", r.Verdict, r.Tensors)
	}
}

func auditPaths(t *testing.T, base, merged string, adapters []merge.Adapter) *audit.Report {
	t.Helper()
	return auditWith(t, base, merged, adapters, audit.Options{})
}

func auditWith(t *testing.T, base, merged string, adapters []merge.Adapter, options audit.Options) *audit.Report {
	t.Helper()
	b, err := checkpoint.Open(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	m, err := checkpoint.Open(t.Context(), merged)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r, err := audit.Run(t.Context(), b, m, adapters, options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestABaseThatWasSimulatedIsTakenSo: the stamp of a merge with Options.BaseAs says so; without it
// the caller does. A later merge into the output takes that as it is.
func TestABaseThatWasSimulatedIsTakenSo(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const rows, cols = 64, 48
	var tensors []testkit.Tensor
	for _, leaf := range []string{"self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj"} {
		tensors = append(tensors, testkit.Random(rng, "model.layers.0."+leaf+".weight", dtype.BF16, 0.1, rows, cols))
	}
	base := t.TempDir() + "/base.safetensors"
	testkit.Write(t, base, testkit.Encode(nil, tensors...))
	first, second := adapterOn(t, rng, "model.layers.0.self_attn.o_proj", rows, cols), adapterOn(t, rng, "model.layers.0.mlp.down_proj", rows, cols)
	simulated := merge.Options{BaseAs: "nf4", BaseAsSkip: []string{"q_proj"}}
	stamped := mergePath(t, base, first, simulated)
	bare := t.TempDir() + "/bare.safetensors"
	testkit.Write(t, bare, testkit.Encode(nil, stored(t, stamped)...))
	claim := audit.Options{BaseAs: "nf4", BaseAsSkip: []string{"q_proj"}}
	for _, c := range []struct {
		name, base, merged string
		adapters           []merge.Adapter
		options            audit.Options
		want               audit.Verdict
		as                 string
	}{
		{"a stamp", base, stamped, first, audit.Options{}, audit.AsClaimed, "nf4"},
		{"a stamp, and the claim that no module was left", base, stamped, first, audit.Options{BaseAs: "nf4"}, audit.NotAsClaimed, "nf4"},
		{"no stamp", base, bare, first, audit.Options{}, audit.NotAsClaimed, ""},
		{"no stamp, and a claim", base, bare, first, claim, audit.AsClaimed, "nf4"},
		{"a plain merge, and a claim", base, mergePath(t, base, first, merge.Options{}), first, claim, audit.NotAsClaimed, "nf4"},
		{"a later merge", stamped, mergePath(t, stamped, second, merge.Options{}), second, audit.Options{}, audit.AsClaimed, ""},
	} {
		got := auditWith(t, c.base, c.merged, c.adapters, c.options)
		if got.Verdict != c.want || got.BaseAs != c.as {
			t.Errorf("%s: the verdict is %v with the base as %q, want %v and %q: %+v", c.name, got.Verdict, got.BaseAs, c.want, c.as, got.Tensors)
		}
	}
	b, err := checkpoint.Open(t.Context(), stamped)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if h := b.History(); len(h) != 1 || h[0].BaseAs != "nf4" || !slices.Equal(h[0].BaseAsSkip, simulated.BaseAsSkip) {
		t.Errorf("the history is %+v", h)
	}
}

// adapterOn makes an adapter of a module with rows×cols weights.
func adapterOn(t *testing.T, rng *rand.Rand, module string, rows, cols uint64) []merge.Adapter {
	t.Helper()
	const r = 2
	b := format.NewBuilder("made up")
	factor := func(shape ...uint64) format.Data {
		return format.Bytes(dtype.F32, testkit.Random(rng, "", dtype.F32, 0.1, shape...).Data, shape...)
	}
	b.Linear(module, r, 1, factor(r, cols), factor(rows, r))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	return []merge.Adapter{{Source: src, Name: module, Weight: 1}}
}

// stored reads all tensors of a checkpoint.
func stored(t *testing.T, path string) (all []testkit.Tensor) {
	t.Helper()
	c, err := inner.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		x := testkit.Tensor{Name: name, DType: ref.Tensor.DType, Shape: ref.Tensor.Shape, Data: make([]byte, ref.Tensor.NBytes)}
		if err := ref.Tensor.ReadAt(t.Context(), x.Data, 0); err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	return all
}

// mergePath merges adapters into the base at a path, and returns the path of the output.
func mergePath(t *testing.T, base string, adapters []merge.Adapter, options merge.Options) (out string) {
	t.Helper()
	out = filepath.Join(t.TempDir(), "out"+filepath.Ext(base))
	plan, err := merge.Open(t.Context(), base, adapters, options)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	if _, err := plan.Run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	return out
}
