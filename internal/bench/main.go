//go:build unix

// Command bench times loratool on synthetic checkpoints, against a plain copy of the files and, if
// they are installed, against PEFT and torch. The commands run in turn, several times, so that a
// machine with drifting speed slows all of them alike; compare the ratios. RESULTS.md beside it has
// the figures of one machine.
//
//	go run ./internal/bench [flags] merge     a shape: loratool merge, cp, PEFT
//	go run ./internal/bench [flags] undo      merge with and without a record, unmerge, swap
//	go run ./internal/bench [flags] plan      merge --dry-run into huge sets of headers, without data
//	go run ./internal/bench -dir DIR headers  only make these headers
//	go run ./internal/bench [flags] decode    merge into an FP8 base, against one in BF16
//	go run ./internal/bench [flags] start     start-up times
//	go run ./internal/bench [flags] spectrum  the singular values of a 7B-shaped adapter
//	go run ./internal/bench [flags] extract   a pair of checkpoints; one matrix against torch
//	go run ./internal/bench [flags] kernels   benchmarks of the kernels here and at another revision
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/loratool/loratool/format/dtype"
)

// setting holds the flags and the path of the tool.
type setting struct {
	shape  string
	dtype  dtype.Type
	rank   int
	runs   int
	dir    string
	out    string
	python string

	against, bench string // for kernels

	loratool string
}

func main() {
	var s setting
	flag.StringVar(&s.shape, "shape", "main", "shape of the model: main, layer, small, large, tiny, single, shards or 7b")
	flag.IntVar(&s.rank, "rank", 16, "rank of the adapter")
	name := flag.String("dtype", "BF16", "dtype of the base: BF16, F16 or F32")
	flag.IntVar(&s.runs, "runs", 5, "runs of each command, after one that warms up")
	flag.StringVar(&s.dir, "dir", "", "where the files are made (default: a temporary directory, removed at the end)")
	flag.StringVar(&s.out, "out", "", "where outputs are made, such as a directory in memory, where no command waits for a disk (default: as for -dir)")
	flag.StringVar(&s.python, "python", "", "a Python with torch, transformers and peft to compare with")
	flag.StringVar(&s.against, "against", "HEAD~1", "kernels: the revision to compare with")
	flag.StringVar(&s.bench, "bench", "Fast/kernel=[^p]", "kernels: which benchmarks, as for go test")
	flag.Parse()
	var ok bool
	if s.dtype, ok = dtype.Parse(*name); !ok || !s.dtype.IsFloat() {
		fmt.Fprintf(os.Stderr, "bench: no dtype to merge into: %s\n", *name)
		os.Exit(2)
	}
	what := map[string]func(*setting) error{
		"merge": (*setting).merge, "undo": (*setting).undo, "decode": (*setting).decode, "plan": (*setting).plan, "headers": (*setting).headers, "start": (*setting).start,
		"spectrum": (*setting).spectrum, "extract": (*setting).extract, "kernels": (*setting).kernels,
	}
	f := what[flag.Arg(0)]
	if _, ok := shapes[s.shape]; !ok || f == nil || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := s.prepared(f); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// prepared calls f with a directory and a tool.
func (s *setting) prepared(f func(*setting) error) error {
	if s.dir == "" {
		tmp, err := os.MkdirTemp("", "loratool-bench-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		s.dir = tmp
	}
	s.loratool = s.path("loratool")
	if out, err := exec.Command("go", "build", "-o", s.loratool, "./cmd/loratool").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return f(s)
}

func (s *setting) path(name string) string { return filepath.Join(s.dir, name) }

// output returns the path of an output that is timed.
func (s *setting) output(name string) string { return filepath.Join(cmp.Or(s.out, s.dir), name) }

// model returns the named shape with the settings applied.
func (s *setting) model(name string) shape {
	m := shapes[name]
	m.dtype, m.factors = s.dtype, dtype.F32
	if m.rank == 0 {
		m.rank = s.rank
	}
	return m
}

// merge times the merge of one shape.
func (s *setting) merge() error {
	m := s.model(s.shape)
	base := s.path("base-" + s.shape + "-" + s.dtype.String())
	adapter := s.path(fmt.Sprintf("adapter-%s-r%d", s.shape, m.rank))
	nBase, err := m.writeBase(base)
	if err != nil {
		return err
	}
	nAdapter, err := m.writeAdapter(adapter)
	if err != nil {
		return err
	}
	merged, copied, byPEFT := s.output("merged"), s.output("copied"), s.output("peft")
	contenders := []contender{
		{"cp", []string{"cp", "-r", "--reflink=never", base, copied}, copied},
		{"cp, sync", []string{"sh", "-c", `cp -r --reflink=never "$0" "$1" && find "$1" -exec sync {} +`, base, copied}, copied},
		{"loratool merge", []string{s.loratool, "merge", "-q", base, adapter, "-o", merged}, merged},
	}
	if s.python != "" {
		contenders = append(contenders, contender{"PEFT merge_and_unload", []string{s.python, "-c", peftScript, base, adapter, byPEFT}, byPEFT})
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	ms := results[2]
	fmt.Printf("%s: base %.2f GB of %v, adapter %.3f GB of %v, rank %d; merged at %.2f GB/s\n\n", s.shape, float64(nBase)/1e9, m.dtype,
		float64(nAdapter)/1e9, m.factors, m.rank, float64(nBase)/1e9/median(ms, seconds))
	table(contenders, results, 2)
	return nil
}

// peftScript merges as PEFT's documentation does.
const peftScript = `
import sys, torch, transformers, peft
base, adapter, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
`
