//go:build unix

// Command bench times loratool against a plain copy of the files, and against PEFT where it is installed, on a synthetic
// Llama-shaped checkpoint. The commands run in turn, several times, so that a machine whose speed drifts slows all of them down alike;
// what counts are the ratios.
//
//	go run ./internal/bench [-layers 22] [-hidden 2048] [-mlp 5632] [-rank 16] [-dtype BF16] [-runs 5] [-dir DIR] [-python PYTHON]
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/loratool/loratool/format/dtype"
)

// shape is the model that is made.
type shape struct {
	layers, hidden, mlp, kv, vocabulary, rank int
	dtype                                     dtype.Type
}

func main() {
	s := shape{kv: 256, vocabulary: 32000}
	flag.IntVar(&s.layers, "layers", 22, "transformer layers")
	flag.IntVar(&s.hidden, "hidden", 2048, "width of the model")
	flag.IntVar(&s.mlp, "mlp", 5632, "width of the MLP")
	flag.IntVar(&s.rank, "rank", 16, "rank of the adapter")
	name := flag.String("dtype", "BF16", "dtype of the base: BF16, F16 or F32")
	runs := flag.Int("runs", 5, "runs of each command; the first one of all is not counted")
	dir := flag.String("dir", "", "where the files are made (default: a temporary directory, removed at the end)")
	python := flag.String("python", "", "a Python with torch, transformers and peft to compare with")
	flag.Parse()
	var ok bool
	if s.dtype, ok = dtype.Parse(*name); !ok || !s.dtype.IsFloat() {
		fmt.Fprintf(os.Stderr, "bench: no dtype to merge into: %s\n", *name)
		os.Exit(2)
	}
	if err := bench(s, *runs, *dir, *python); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// contender is one command that is timed. out is removed before each run.
type contender struct {
	name string
	args []string
	out  string
}

// measure is one run.
type measure struct {
	wall   time.Duration
	cpu    time.Duration
	maxRSS int64 // bytes
}

func bench(s shape, runs int, dir, python string) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "loratool-bench-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	base, adapter := filepath.Join(dir, "base"), filepath.Join(dir, "adapter")
	n, err := s.write(base, adapter)
	if err != nil {
		return err
	}
	binary := filepath.Join(dir, "loratool")
	if out, err := exec.Command("go", "build", "-o", binary, "./cmd/loratool").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	merged, copied, byPEFT := filepath.Join(dir, "merged"), filepath.Join(dir, "copied"), filepath.Join(dir, "peft")
	contenders := []contender{
		{"cp -r --reflink=never", []string{"cp", "-r", "--reflink=never", base, copied}, copied},
		{"loratool merge", []string{binary, "merge", "-q", base, adapter, "-o", merged}, merged},
	}
	if python != "" {
		contenders = append(contenders, contender{"PEFT merge_and_unload", []string{python, "-c", peftScript, base, adapter, byPEFT}, byPEFT})
	}
	results := make([][]measure, len(contenders))
	for run := range runs + 1 {
		for i, c := range contenders {
			if run == 0 && i > 1 {
				continue // the warm-up fills the page cache; PEFT is too slow to run for that
			}
			if err := os.RemoveAll(c.out); err != nil {
				return err
			}
			m, err := timed(c.args)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if run > 0 {
				results[i] = append(results[i], m)
			}
		}
	}
	report(s, n, contenders, results)
	return nil
}

// peftScript merges with PEFT the way its documentation does.
const peftScript = `
import sys, torch, transformers, peft
base, adapter, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
`

func timed(args []string) (measure, error) {
	c := exec.Command(args[0], args[1:]...)
	start := time.Now()
	out, err := c.CombinedOutput()
	m := measure{wall: time.Since(start)}
	if err != nil {
		return m, fmt.Errorf("%w: %s", err, out)
	}
	m.cpu = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.maxRSS = int64(u.Maxrss) << 10 // kilobytes on Linux
	}
	return m, nil
}

func median[T any](ms []measure, f func(measure) T, less func(a, b T) int) T {
	values := make([]T, len(ms))
	for i, m := range ms {
		values[i] = f(m)
	}
	slices.SortFunc(values, less)
	return values[len(values)/2]
}

func report(s shape, n int64, contenders []contender, results [][]measure) {
	fmt.Printf("%d layers, hidden %d, MLP %d, %v, rank %d: %.2f GB\n\n", s.layers, s.hidden, s.mlp, s.dtype, s.rank, float64(n)/1e9)
	fmt.Println("| command | wall, s (min – max) | CPU, s | ÷ cp | peak memory, MB |")
	fmt.Println("|---|---:|---:|---:|---:|")
	seconds := func(d time.Duration) float64 { return d.Seconds() }
	byTime := func(a, b time.Duration) int { return int(a - b) }
	for i, c := range contenders {
		ms := results[i]
		wall := func(m measure) time.Duration { return m.wall }
		// The ratio pair by pair: each run against the copy of the same round.
		ratios := make([]float64, len(ms))
		for j := range ms {
			ratios[j] = ms[j].wall.Seconds() / results[0][j].wall.Seconds()
		}
		slices.Sort(ratios)
		lo := slices.MinFunc(ms, func(a, b measure) int { return byTime(a.wall, b.wall) })
		hi := slices.MaxFunc(ms, func(a, b measure) int { return byTime(a.wall, b.wall) })
		fmt.Printf("| %s | %.2f (%.2f – %.2f) | %.2f | %.2f | %.0f |\n", c.name,
			seconds(median(ms, wall, byTime)), seconds(lo.wall), seconds(hi.wall),
			seconds(median(ms, func(m measure) time.Duration { return m.cpu }, byTime)), ratios[len(ratios)/2],
			float64(median(ms, func(m measure) int64 { return m.maxRSS }, func(a, b int64) int { return int(a - b) }))/1e6)
	}
}

// entry is a tensor to write.
type entry struct {
	name  string
	shape []int
}

// write makes the base and the adapter, unless they are there, and returns the size of the base.
func (s shape) write(base, adapter string) (int64, error) {
	var tensors, factors []entry
	linear := func(name string, m, n int) {
		tensors = append(tensors, entry{name + ".weight", []int{m, n}})
		factors = append(factors, entry{"base_model.model." + name + ".lora_A.weight", []int{s.rank, n}},
			entry{"base_model.model." + name + ".lora_B.weight", []int{m, s.rank}})
	}
	tensors = append(tensors, entry{"model.embed_tokens.weight", []int{s.vocabulary, s.hidden}})
	for i := range s.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		tensors = append(tensors, entry{p + "input_layernorm.weight", []int{s.hidden}}, entry{p + "post_attention_layernorm.weight", []int{s.hidden}})
		linear(p+"self_attn.q_proj", s.hidden, s.hidden)
		linear(p+"self_attn.k_proj", s.kv, s.hidden)
		linear(p+"self_attn.v_proj", s.kv, s.hidden)
		linear(p+"self_attn.o_proj", s.hidden, s.hidden)
		linear(p+"mlp.gate_proj", s.mlp, s.hidden)
		linear(p+"mlp.up_proj", s.mlp, s.hidden)
		linear(p+"mlp.down_proj", s.hidden, s.mlp)
	}
	tensors = append(tensors, entry{"model.norm.weight", []int{s.hidden}}, entry{"lm_head.weight", []int{s.vocabulary, s.hidden}})
	config := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": s.hidden, "intermediate_size": s.mlp,
		"num_hidden_layers": s.layers, "num_attention_heads": s.hidden / 64, "num_key_value_heads": s.kv / 64, "vocab_size": s.vocabulary,
		"tie_word_embeddings": false, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu",
		"torch_dtype": map[dtype.Type]string{dtype.BF16: "bfloat16", dtype.F16: "float16", dtype.F32: "float32"}[s.dtype],
	}
	peft := map[string]any{
		"peft_type": "LORA", "r": s.rank, "lora_alpha": 2 * s.rank, "task_type": "CAUSAL_LM", "bias": "none",
		"target_modules": []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
	}
	n, err := writeFile(filepath.Join(base, "model.safetensors"), tensors, s.dtype, 0.02)
	_, err2 := writeFile(filepath.Join(adapter, "adapter_model.safetensors"), factors, dtype.F32, 0.011)
	return n, errors.Join(err, err2, writeJSON(filepath.Join(base, "config.json"), config), writeJSON(filepath.Join(adapter, "adapter_config.json"), peft))
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o666)
}

// writeFile writes a safetensors file of normal numbers.
func writeFile(path string, tensors []entry, d dtype.Type, sigma float64) (int64, error) {
	if info, err := os.Stat(path); err == nil {
		return info.Size(), nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return 0, err
	}
	header := []byte(`{"__metadata__":{"format":"pt"}`)
	var off int64
	for _, t := range tensors {
		size := int64(d.Size())
		for _, n := range t.shape {
			size *= int64(n)
		}
		shape, err := json.Marshal(t.shape)
		if err != nil {
			return 0, err
		}
		header = fmt.Appendf(header, `,%q:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, t.name, d.String(), shape, off, off+size)
		off += size
	}
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) // a bufio.Writer keeps its first error for Flush
	w.Write(header)
	rng := rand.New(rand.NewPCG(1, uint64(off)))
	// A table of normal numbers, drawn from at random: fast, and as incompressible as the numbers themselves.
	table := make([]byte, (1<<16)*d.Size())
	for i := range 1 << 16 {
		dtype.Store(d, table, i, sigma*rng.NormFloat64())
	}
	size := d.Size()
	for n := off / int64(size); n > 0; n -= 4 {
		bits := rng.Uint64()
		for k := range min(n, 4) {
			at := int(bits>>(16*k)&0xffff) * size
			w.Write(table[at : at+size])
		}
	}
	return off + 8 + int64(len(header)), errors.Join(w.Flush(), f.Close())
}
