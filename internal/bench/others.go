//go:build unix

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"

	"github.com/loratool/loratool/format/dtype"
)

// undo times a merge with an undo record, an unmerge and a swap, against a plain merge.
func (s *setting) undo() error {
	m := s.model(s.shape)
	base, adapter := s.path("base-"+s.shape+"-"+s.dtype.String()), s.path(fmt.Sprintf("adapter-%s-r%d", s.shape, m.rank))
	if _, err := m.writeBase(base); err != nil {
		return err
	}
	if _, err := m.writeAdapter(adapter); err != nil {
		return err
	}
	kept, record := s.path("kept"), s.path("kept.undo")
	if err := errors.Join(os.RemoveAll(kept), os.RemoveAll(record)); err != nil {
		return err
	}
	if out, err := exec.Command(s.loratool, "merge", base, adapter, "-o", kept, "--undo-file="+record).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	} else {
		fmt.Printf("%s\n", out)
	}
	merged, recorded, back, swapped := s.output("merged"), s.output("recorded"), s.output("back"), s.output("swapped")
	const fresh = `rm -f "$1" && exec "$0" "$2" -q "$3" -o "$4" "--$5=$1"` // existing records are not replaced
	contenders := []contender{
		{"loratool merge", []string{s.loratool, "merge", "-q", base, adapter, "-o", merged}, merged},
		{"loratool merge --undo", []string{"sh", "-c", fresh + ` "$6"`, s.loratool, recorded + ".undo", "merge", base, recorded, "undo-file", adapter}, recorded},
		{"loratool unmerge", []string{s.loratool, "unmerge", "-q", kept, adapter, "-o", back}, back},
		{"loratool swap", []string{"sh", "-c", fresh + ` --remove "$6" --add "$6" --weight 0.5`, s.loratool, swapped + ".undo", "swap", kept, swapped, "new-undo", adapter}, swapped},
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 1)
	return nil
}

// start times commands that compute nothing.
func (s *setting) start() error {
	m := s.model("7b")
	adapter := s.path(fmt.Sprintf("adapter-7b-r%d", m.rank))
	if _, err := m.writeAdapter(adapter); err != nil {
		return err
	}
	contenders := []contender{
		{"loratool version", []string{s.loratool, "version"}, ""},
		{"loratool inspect, 7B adapter", []string{s.loratool, "inspect", adapter}, ""},
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 0)
	return nil
}

// spectrum times the singular values of 7B-shaped adapters.
func (s *setting) spectrum() error {
	var contenders []contender
	for _, rank := range []int{16, 64} {
		m := s.model("7b")
		m.rank = rank
		adapter := s.path(fmt.Sprintf("adapter-7b-r%d", rank))
		if _, err := m.writeAdapter(adapter); err != nil {
			return err
		}
		contenders = append(contenders, contender{fmt.Sprintf("loratool inspect --spectrum, r = %d", rank), []string{s.loratool, "inspect", "--spectrum", adapter}, ""})
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 0)
	return nil
}

// extract times an extraction of rank 8 from a pair of checkpoints that differ by an adapter and
// the rounding to the dtype. With Python it also times one 5632×2048 matrix against two
// decompositions of torch; the shape layer also against mergekit.
func (s *setting) extract() error {
	m := s.model(s.shape)
	base, tuned, adapter := s.path("base-"+s.shape+"-"+s.dtype.String()), s.path("tuned-"+s.shape), s.path(fmt.Sprintf("adapter-%s-r%d", s.shape, m.rank))
	_, err := m.writeBase(base)
	if _, err2 := m.writeAdapter(adapter); errors.Join(err, err2) != nil {
		return errors.Join(err, err2)
	}
	if _, err := os.Stat(tuned); err != nil {
		c := contender{"merge", []string{s.loratool, "merge", "-q", base, adapter, "-o", tuned}, ""}
		if _, err := c.run(); err != nil {
			return err
		}
	}
	out, byMergekit := s.output("extracted"), s.output("mergekit")
	contenders := []contender{{"loratool extract --rank 8, " + s.shape, []string{s.loratool, "extract", "-q", base, tuned, "-o", out, "--rank", "8"}, out}}
	if s.python != "" && s.shape == "layer" { // it takes a minute for each matrix of main
		contenders = append(contenders, contender{"mergekit-extract-lora --max-rank 8", []string{s.python, "-m", "mergekit.scripts.extract_lora",
			"--base-model", base, "--model", tuned, "--out-path", byMergekit, "--max-rank", "8"}, byMergekit})
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 0)
	if s.python == "" {
		return nil
	}
	return errors.Join(s.extractOne(5632, 2048, 8), s.extractOne(256, 2048, 64))
}

// extractOne compares decompositions of the difference of two m×n bf16 matrices.
func (s *setting) extractOne(m, n, rank int) error {
	base, tuned := s.path(fmt.Sprintf("one-base-%d.safetensors", m)), s.path(fmt.Sprintf("one-tuned-%d.safetensors", m))
	if err := writePair(base, tuned, m, n); err != nil {
		return err
	}
	out := s.output("extracted")
	c := contender{"torch", []string{s.python, "-c", torchScript, s.loratool, base, tuned, out, strconv.Itoa(s.runs), strconv.Itoa(rank)}, out}
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// torchScript times loratool as a process that reads two files and writes an adapter, and torch's
// functions alone on Δ in float32. It measures all errors in the same way.
const torchScript = `
import glob, shutil, statistics, subprocess, sys, time, torch
from safetensors.torch import load_file
loratool, base, tuned, out, runs, rank = sys.argv[1:]
k = int(rank)
w0, w1 = (next(iter(load_file(p).values())) for p in (base, tuned))
delta = w1.float() - w0.float()
def extract():
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([loratool, "extract", "-q", base, tuned, "-o", out, "--rank", rank], check=True)
def product(): # of the extracted factors
    f = load_file(glob.glob(out + "/*.safetensors")[0])
    a, b = (next(v for k, v in f.items() if n in k).float() for n in ("lora_A", "lora_B"))
    return b @ a
def lowrank():
    u, s, v = torch.svd_lowrank(delta, q=2 * k, niter=2)
    return (u[:, :k] * s[:k]) @ v[:, :k].T
def full():
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :k] * s[:k]) @ v[:k]
ways = {"loratool extract, whole process": extract, f"torch.svd_lowrank(q={2 * k}, niter=2)": lowrank, "torch.linalg.svd": full}
times, error = {k: [] for k in ways}, {}
for _ in range(int(runs)):
    for name, f in ways.items():
        start = time.perf_counter()
        got = f()
        times[name].append(time.perf_counter() - start)
        got = product() if got is None else got
        error[name] = (torch.linalg.norm((delta - got).double()) / torch.linalg.norm(delta.double())).item()
print("\n| one matrix of %d x %d, rank %d | s | relative error |\n|---|---:|---:|" % (*delta.shape, k))
for name in ways:
    print("| %s | %.4f | %.6f |" % (name, statistics.median(times[name]), error[name]))
`

// writePair makes two checkpoints of one matrix, unless they exist: normal numbers, and the same
// plus Σ_k σ_k·u_k·v_kᵀ, with σ_k falling like 1/k over 128 directions.
func writePair(base, tuned string, m, n int) error {
	if _, err := os.Stat(tuned); err == nil {
		return nil
	}
	d := dtype.BF16
	if _, err := writeFile(base, []entry{{name: "model.layers.0.mlp.up_proj.weight", shape: []int{m, n}}}, d, 0.02); err != nil {
		return err
	}
	file, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	w := file[8+int(binary.LittleEndian.Uint64(file)):]
	const directions = 128
	rng := rand.New(rand.NewPCG(2, 3))
	u, v := make([]float32, m*directions), make([]float32, n*directions)
	for i := range u {
		u[i] = float32(rng.NormFloat64()) * 0.004 / float32(i%directions+1)
	}
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	for i := range m {
		for j := range n {
			var sum float32
			for k, x := range u[i*directions : (i+1)*directions] {
				sum += x * v[j*directions+k]
			}
			dtype.Store(d, w, i*n+j, dtype.Load(d, w, i*n+j)+float64(sum))
		}
	}
	return os.WriteFile(tuned, file, 0o666)
}
