package merge_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// run runs a plan and returns the path of its output.
func run(t *testing.T, p *merge.Plan, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	t.Cleanup(func() { p.Close() })
	out := filepath.Join(t.TempDir(), "out")
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	return out
}

func record(t *testing.T, name string, b []byte) *merge.Record {
	t.Helper()
	r, err := merge.OpenRecord(context.Background(), name, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// anyWeight prepares merged adapters for a removal that takes the weights from the record.
func anyWeight(adapters []merge.Adapter) []merge.Adapter {
	var all []merge.Adapter
	for _, a := range adapters {
		a.Weight = math.NaN()
		all = append(all, a)
	}
	return all
}

func tree(t *testing.T, path string) map[string]string {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return map[string]string{"": testkit.Hash(t, path)}
	}
	return testkit.Tree(t, path)
}

// TestUnmergeRestoresEveryByte merges every fixture with a record and removes the merge.
func TestUnmergeRestoresEveryByte(t *testing.T) {
	eachBase(t, "merge", 20, func(t *testing.T, dir string, c fixture) {
		var rec bytes.Buffer
		adapters, err := c.openAdapters(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Join(fixtures, "bases", c.Base)
		p, err := c.open(t, dir, merge.Options{Undo: &rec})
		merged := run(t, p, err)
		if maps.Equal(tree(t, merged), tree(t, base)) {
			t.Fatal("the merge has changed nothing")
		}
		p, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{})
		if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
			t.Errorf("taken back: %v, want %v", got, want)
		}
	})
}

// TestRecordIsSmall bounds the cost of a record per weight of a BF16 base, for the usual ‖ΔW‖/‖W‖
// of adapters. The limits are the measured order-0 entropies of the residuals: 1.05, 0.12 and 0.024
// bits.
func TestRecordIsSmall(t *testing.T) {
	for _, c := range []struct{ ratio, bits float64 }{{0.3, 1.15}, {0.01, 0.15}, {0.001, 0.04}} {
		m := writePair(t, dtype.BF16, 2048, 2048, c.ratio)
		var rec bytes.Buffer
		p, err := merge.Open(context.Background(), m.base, m.adapters, merge.Options{Undo: &rec})
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(context.Background(), filepath.Join(t.TempDir(), "out"))
		p.Close()
		if err != nil {
			t.Fatal(err)
		}
		if r.Undo.BitsPerWeight > c.bits {
			t.Errorf("‖ΔW‖/‖W‖ = %.4f: %.4f bits per weight, want at most %v", r.Total.RelativeNorm, r.Undo.BitsPerWeight, c.bits)
		}
		t.Logf("‖ΔW‖/‖W‖ = %.4f: %.4f bits per weight", r.Total.RelativeNorm, r.Undo.BitsPerWeight)
	}
}

// pair is a base of one matrix and an adapter of rank 16 for it.
type pair struct {
	base     string
	adapters []merge.Adapter
}

// writePair writes a pair with ‖ΔW‖/‖W‖ near ratio.
func writePair(t *testing.T, d dtype.Type, rows, cols uint64, ratio float64) pair {
	t.Helper()
	const sigma, rank = 0.02, 16
	rng := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	p := pair{base: filepath.Join(dir, "base.safetensors")}
	testkit.Write(t, p.base, testkit.Encode(nil, testkit.Random(rng, "q.weight", d, sigma, rows, cols)))
	p.adapters = []merge.Adapter{writeLoRA(t, filepath.Join(dir, "adapter"), rng, "q", rank, rows, cols, ratio*sigma)}
	return p
}

// writeLoRA writes an adapter for one module whose s·B·A has elements of standard deviation sigma.
func writeLoRA(t *testing.T, path string, rng *rand.Rand, module string, rank, rows, cols uint64, sigma float64) merge.Adapter {
	t.Helper()
	key := "base_model.model." + module
	testkit.WriteAdapter(t, path, int(rank), float64(rank),
		testkit.Random(rng, key+".lora_A.weight", dtype.F32, 1, rank, cols),
		testkit.Random(rng, key+".lora_B.weight", dtype.F32, sigma/math.Sqrt(float64(rank)), rows, rank))
	src, err := convert.Open(t.Context(), path, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return merge.Adapter{Source: src, Name: path, Weight: 1}
}

// special puts values into a tensor that rounding and subtraction treat differently: zeros of both
// signs, subnormals, the largest numbers, infinities, NaNs with payloads.
func special(t testkit.Tensor) testkit.Tensor {
	size := t.DType.Size()
	patterns := map[dtype.Type][]uint64{
		dtype.BF16: {0, 1 << 15, 1, 1<<15 | 1, 0x7f, 0x80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc1, 0xffff},
		dtype.F16:  {0, 1 << 15, 1, 1<<15 | 1, 0x3ff, 0x400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e01, 0xffff},
		dtype.F32:  {0, 1 << 31, 1, 1<<31 | 1, 0x7fffff, 0x800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00001, 0xffffffff},
		dtype.F64:  {0, 1 << 63, 1, 1<<63 | 1, 1<<52 - 1, 1 << 52, 0x7fefffffffffffff, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001},
	}[t.DType]
	for i, x := range patterns {
		for k := range size {
			t.Data[(3*i+1)*size+k] = byte(x >> (8 * k))
		}
	}
	return t
}

// TestUnmergeOfAnyValues merges and restores random bases of every dtype, with special values and
// updates of every size. Some merges overflow to infinity; the record survives that too.
func TestUnmergeOfAnyValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64} {
		for _, ratio := range []float64{0, 0.0003, 0.003, 0.03, 0.3, 30, 1e6} {
			for _, rank := range []uint64{1, 7, 33} {
				dir := t.TempDir()
				rows, cols := 1+rng.Uint64N(90), 40+rng.Uint64N(90)
				base := filepath.Join(dir, "base.safetensors")
				w := special(testkit.Random(rng, "q.weight", d, 0.02, rows, cols))
				testkit.Write(t, base, testkit.Encode(map[string]string{"format": "pt"}, w, testkit.Random(rng, "other", d, 1, 5)))
				adapters := []merge.Adapter{writeLoRA(t, filepath.Join(dir, "adapter"), rng, "q", rank, rows, cols, ratio*0.02)}
				var rec bytes.Buffer
				p, err := merge.Open(context.Background(), base, adapters, merge.Options{Undo: &rec, AllowNonFinite: true})
				merged := run(t, p, err)
				p, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{})
				if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
					t.Errorf("%v, ‖ΔW‖/‖W‖ = %v, rank %d: not the base", d, ratio, rank)
				}
			}
		}
	}
}

// TestUnmergeOfFactorsThatAreNotFinite: NaN and infinity in factors destroy weights, and the record
// restores them.
func TestUnmergeOfFactorsThatAreNotFinite(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 18))
	dir := t.TempDir()
	base := filepath.Join(dir, "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, special(testkit.Random(rng, "q.weight", dtype.BF16, 0.02, 20, 30))))
	testkit.WriteAdapter(t, filepath.Join(dir, "adapter"), 1, 1,
		testkit.Values("base_model.model.q.lora_A.weight", dtype.F32, []uint64{1, 30}, append([]float64{math.NaN(), math.Inf(1), 0, 1}, make([]float64, 26)...)...),
		testkit.Random(rng, "base_model.model.q.lora_B.weight", dtype.F32, 1, 20, 1))
	src, err := convert.Open(t.Context(), filepath.Join(dir, "adapter"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	adapters := []merge.Adapter{{Source: src, Name: "adapter", Weight: 1}}
	var rec bytes.Buffer
	p, err := merge.Open(context.Background(), base, adapters, merge.Options{Undo: &rec, AllowNonFinite: true})
	merged := run(t, p, err)
	p, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
		t.Error("not the base")
	}
}

// TestRecordDoesNotDependOnWorkersAndBlocks: many blocks give records of equal bytes, and any
// number of workers can read them.
func TestRecordDoesNotDependOnWorkersAndBlocks(t *testing.T) {
	m := writeMixed(t)
	var first []byte
	want := tree(t, m.base)
	for _, workers := range someWorkers {
		for _, block := range someBlocks {
			var rec bytes.Buffer
			p, err := m.open(t, merge.Options{Workers: workers, BlockBytes: block, Undo: &rec})
			merged := run(t, p, err)
			if first == nil {
				first = rec.Bytes()
			}
			if !bytes.Equal(rec.Bytes(), first) {
				t.Errorf("workers %d, blocks of %d: another record", workers, block)
			}
			p, err = merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(m.adapters), Records: []*merge.Record{record(t, "r", rec.Bytes())}}, merge.Options{Workers: workers, BlockBytes: block})
			if got := tree(t, run(t, p, err)); !maps.Equal(got, want) {
				t.Errorf("workers %d, blocks of %d: not the base", workers, block)
			}
		}
	}
}

// TestHundredSwapsEndWhereTheyBegan swaps two adapters back and forth, and removes the last one.
func TestHundredSwapsEndWhereTheyBegan(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(13, 14))
	base := filepath.Join(dir, "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, testkit.Random(rng, "q.weight", dtype.BF16, 0.02, 70, 60), testkit.Random(rng, "k.weight", dtype.F16, 0.02, 50, 60)))
	// x and y share one module and have one each of their own.
	x := writeLoRA(t, filepath.Join(dir, "x"), rng, "q", 4, 70, 60, 0.006)
	y := writeLoRA(t, filepath.Join(dir, "y"), rng, "k", 4, 50, 60, 0.002)
	now, rec := mergeRecorded(t, base, x)
	direct, directRecord := mergeRecorded(t, base, y)
	for i := range 100 {
		out, in := x, y
		if i%2 == 1 {
			out, in = y, x
		}
		var next bytes.Buffer
		p, err := merge.OpenSwap(context.Background(), now, merge.Removal{Adapters: anyWeight([]merge.Adapter{out}), Records: []*merge.Record{record(t, "r", rec)}}, []merge.Adapter{in}, merge.Options{Undo: &next})
		now, rec = run(t, p, err), next.Bytes()
		if i%2 == 0 && (!maps.Equal(tree(t, now), tree(t, direct)) || !bytes.Equal(rec, directRecord)) {
			t.Fatalf("swap %d: differs from merging into the base", i)
		}
	}
	p, err := merge.OpenUnmerge(context.Background(), now, merge.Removal{Adapters: anyWeight([]merge.Adapter{x}), Records: []*merge.Record{record(t, "r", rec)}}, merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, base); !maps.Equal(got, want) {
		t.Error("after 100 swaps: not the base")
	}
}

// mergeRecorded merges one adapter with a record.
func mergeRecorded(t *testing.T, base string, adapters ...merge.Adapter) (out string, rec []byte) {
	t.Helper()
	var b bytes.Buffer
	p, err := merge.Open(context.Background(), base, adapters, merge.Options{Undo: &b})
	return run(t, p, err), b.Bytes()
}

// stack is a base with three merges on top of each other, and their outputs.
type stack struct {
	base     string
	adapters [3]merge.Adapter
	merged   [3]string
	records  [3][]byte
}

func writeStack(t *testing.T) *stack {
	t.Helper()
	rng := rand.New(rand.NewPCG(15, 16))
	dir := t.TempDir()
	s := &stack{base: filepath.Join(dir, "base.safetensors")}
	testkit.Write(t, s.base, testkit.Encode(map[string]string{"format": "pt"}, testkit.Random(rng, "q.weight", dtype.BF16, 0.02, 70, 60), testkit.Random(rng, "k.weight", dtype.BF16, 0.02, 50, 60)))
	below := s.base
	for i, module := range []string{"q", "k", "q"} {
		rows := uint64(70)
		if module == "k" {
			rows = 50
		}
		s.adapters[i] = writeLoRA(t, filepath.Join(dir, "xyz"[i:i+1]), rng, module, 3, rows, 60, 0.004)
		s.merged[i], s.records[i] = mergeRecorded(t, below, s.adapters[i])
		below = s.merged[i]
	}
	return s
}

// TestStackComesOffInAnyOrder: the remaining merges give the bytes of one merge into the base, in
// any order of records and adapters.
func TestStackComesOffInAnyOrder(t *testing.T) {
	s := writeStack(t)
	rec := func(i ...int) (all []*merge.Record) {
		for _, i := range i {
			all = append(all, record(t, string("xyz"[i]), s.records[i]))
		}
		return all
	}
	ad := func(i ...int) (all []merge.Adapter) {
		for _, i := range i {
			all = append(all, s.adapters[i])
		}
		return all
	}
	for _, c := range []struct {
		name    string
		records []*merge.Record
		out, in []merge.Adapter
		want    string
	}{
		{"the last", rec(2), ad(2), nil, s.merged[1]},
		{"the last two", rec(2, 1), ad(2, 1), nil, s.merged[0]},
		{"the last two, named the other way", rec(1, 2), ad(1, 2), nil, s.merged[0]},
		{"all", rec(1, 0, 2), ad(2, 0, 1), nil, s.base},
		{"the first", rec(0, 1, 2), ad(0, 1, 2), ad(1, 2), first2(mergeRecorded(t, s.base, ad(1, 2)...))},
		{"the one in the middle", rec(2, 1), ad(1, 2), ad(2), first2(mergeRecorded(t, s.merged[0], ad(2)...))},
	} {
		var p *merge.Plan
		var err error
		remove := merge.Removal{Adapters: anyWeight(c.out), Records: c.records}
		if c.in == nil {
			p, err = merge.OpenUnmerge(context.Background(), s.merged[2], remove, merge.Options{})
		} else {
			p, err = merge.OpenSwap(context.Background(), s.merged[2], remove, c.in, merge.Options{})
		}
		if got, want := tree(t, run(t, p, err)), tree(t, c.want); !maps.Equal(got, want) {
			t.Errorf("%s: another checkpoint", c.name)
		}
	}
}

func first2(out string, _ []byte) string { return out }

// TestWrongRemovalsAreNamed: a record, adapter or checkpoint that does not belong to the others is
// named before anything is written.
func TestWrongRemovalsAreNamed(t *testing.T) {
	s := writeStack(t)
	weighted := s.adapters[2]
	weighted.Weight = 0.5
	changed := filepath.Join(t.TempDir(), "changed.safetensors")
	content, err := os.ReadFile(s.merged[2])
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)-1] ^= 1 // of k.weight, which z leaves alone
	untouched := filepath.Join(t.TempDir(), "untouched.safetensors")
	testkit.Write(t, untouched, content)
	content[len(content)-1] ^= 1
	content[len(content)-50*60*2-1] ^= 1 // of q.weight
	testkit.Write(t, changed, content)
	edited := filepath.Join(t.TempDir(), "edited.safetensors")
	testkit.Write(t, edited, bytes.Replace(content, []byte(`"format":"pt"`), []byte(`"format":"tf"`), 1))
	any2 := func(i int) []merge.Adapter { return anyWeight([]merge.Adapter{s.adapters[i]}) }
	for _, c := range []struct {
		name    string
		merged  string
		records []int
		out     []merge.Adapter
		words   string
	}{
		{"another adapter", s.merged[2], []int{2}, any2(0), "needs the adapter \"z\""},
		{"one adapter too many", s.merged[2], []int{2}, append(any2(0), any2(2)...), "none of the undo records covers"},
		{"another weight", s.merged[2], []int{2}, []merge.Adapter{weighted}, "merged with the weight 1, not 0.5"},
		{"the record of an earlier merge", s.merged[2], []int{0}, any2(0), "belongs to another merge"},
		{"a record twice", s.merged[2], []int{2, 2}, any2(2), "belongs to another merge"},
		{"a gap in the chain", s.merged[2], []int{2, 0}, append(any2(2), any2(0)...), "from before"},
		{"the base in place of the merged", s.base, []int{2}, any2(2), "belongs to another merge"},
		{"an edited header", edited, []int{2}, any2(2), "belongs to another merge"},
		{"a changed weight", changed, []int{2}, any2(2), "\"q.weight\" differs from the merge's output"},
		{"a changed weight that the merge left alone", untouched, []int{2}, any2(2), "(from \"k.weight\" on) alone, but their CRC-32 is"},
		{"no record", s.merged[2], nil, any2(2), "there is no undo record"},
		{"no adapter", s.merged[2], []int{2}, nil, "no adapter to remove"},
	} {
		var records []*merge.Record
		for _, i := range c.records {
			records = append(records, record(t, "record", s.records[i]))
		}
		parent := t.TempDir()
		p, err := merge.OpenUnmerge(context.Background(), c.merged, merge.Removal{Adapters: c.out, Records: records}, merge.Options{})
		if err == nil {
			_, err = p.Run(context.Background(), filepath.Join(parent, "out"))
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.words) || !errors.Is(err, fault.Mismatch) {
			t.Errorf("%s: %v, want a mismatch with %q", c.name, err, c.words)
		}
		if left, _ := os.ReadDir(parent); len(left) > 0 {
			t.Errorf("%s: %q was left behind", c.name, left[0].Name())
		}
	}
}

// TestDamagedRecordsAreFound flips every bit of a small record in turn. No different base may come
// out.
func TestDamagedRecordsAreFound(t *testing.T) {
	s := writeStack(t)
	want := tree(t, s.merged[1])
	for i := range s.records[2] {
		damaged := bytes.Clone(s.records[2])
		damaged[i] ^= 1 << (i % 8)
		r, err := merge.OpenRecord(context.Background(), "record", bytes.NewReader(damaged), int64(len(damaged)))
		if err != nil {
			continue
		}
		p, err := merge.OpenUnmerge(context.Background(), s.merged[2], merge.Removal{Adapters: anyWeight([]merge.Adapter{s.adapters[2]}), Records: []*merge.Record{r}}, merge.Options{})
		if err != nil {
			continue
		}
		out := filepath.Join(t.TempDir(), "out")
		_, err = p.Run(context.Background(), out)
		p.Close()
		if err == nil && !maps.Equal(tree(t, out), want) {
			t.Fatalf("bit %d of byte %d of the record flipped: a different base came out", i%8, i)
		}
	}
}

// TestApproximateCountsWhatMayDiffer: without a record, the count bounds the number of wrong
// elements, and a count of zero means none.
func TestApproximateCountsWhatMayDiffer(t *testing.T) {
	for _, c := range []struct {
		d     dtype.Type
		ratio float64
	}{{dtype.BF16, 0.3}, {dtype.BF16, 0.003}, {dtype.F16, 0.05}, {dtype.F32, 0.05}} {
		m := writePair(t, c.d, 200, 300, c.ratio)
		merged, _ := mergeRecorded(t, m.base, m.adapters...)
		p, err := merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(m.adapters), Approximate: true}, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		r, err := p.Run(context.Background(), out)
		p.Close()
		if err != nil {
			t.Fatal(err)
		}
		got, want := read(t, openCheckpoint(t, out), "q.weight"), read(t, openCheckpoint(t, m.base), "q.weight")
		wrong := int64(0)
		for i := 0; i < len(want); i += c.d.Size() {
			if !bytes.Equal(got[i:i+c.d.Size()], want[i:i+c.d.Size()]) {
				wrong++
			}
		}
		if n := r.TakenOut[0].MayDiffer; wrong > n || n > 4*wrong+10 {
			t.Errorf("%v, ratio %v: %d of %d elements differ, the report allows %d", c.d, c.ratio, wrong, len(want)/c.d.Size(), n)
		}
		if h := history(t, out); len(h) > 0 {
			t.Errorf("the stamp is still there: %v", h)
		}
	}
}

// full is a disk with room for a few bytes.
type full struct{ left int }

var errFull = errors.New("no room")

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.left {
		return f.left, errFull
	}
	f.left -= len(p)
	return len(p), nil
}

// TestARecordThatCannotBeWrittenIsNoMerge: the checkpoint does not appear without its record.
func TestARecordThatCannotBeWrittenIsNoMerge(t *testing.T) {
	m := writePair(t, dtype.BF16, 100, 100, 0.1)
	for _, room := range []int{0, 100, 1000} {
		parent := t.TempDir()
		p, err := merge.Open(context.Background(), m.base, m.adapters, merge.Options{Undo: &full{room}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Run(context.Background(), filepath.Join(parent, "out"))
		p.Close()
		if !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: %v, want %v", room, err, errFull)
		}
		if left, _ := os.ReadDir(parent); len(left) > 0 {
			t.Errorf("room for %d bytes: %q was left behind", room, left[0].Name())
		}
	}
}
