//go:build unix

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// decode times the merge into a base in FP8, which decodes all its linears, against a merge into
// the same shape in BF16. Both outputs have the same size.
func (s *setting) decode() error {
	m := s.model(s.shape)
	m.dtype = dtype.BF16
	plain, adapter := s.path("base-"+s.shape+"-BF16"), s.path(fmt.Sprintf("adapter-%s-r%d", s.shape, m.rank))
	quantised := s.path("base-" + s.shape + "-FP8")
	_, err := m.writeBase(plain)
	_, err2 := m.writeAdapter(adapter)
	if err := errors.Join(err, err2, m.writeFP8(quantised)); err != nil {
		return err
	}
	merged, decoded := s.output("merged"), s.output("decoded")
	contenders := []contender{
		{"loratool merge, BF16", []string{s.loratool, "merge", "-q", plain, adapter, "-o", merged}, merged},
		{"loratool merge, FP8 to BF16", []string{s.loratool, "merge", "-q", quantised, adapter, "-o", decoded}, decoded},
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 1)
	fmt.Printf("CPU time of the second ÷ that of the first: %.2f\n", median(results[1], cpuSeconds)/median(results[0], cpuSeconds))
	return nil
}

// writeFP8 makes the base with its linears in FP8 with scales of blocks of 128×128, unless it
// exists.
func (s *shape) writeFP8(dir string) error {
	path := filepath.Join(dir, "model.safetensors")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	all, _ := s.tensors()
	var tensors []entry
	for _, t := range all {
		t.dtype = dtype.BF16
		if strings.Contains(t.name, "_proj.") {
			t.dtype = dtype.F8E4M3
			scale := entry{name: t.name + "_scale_inv", shape: []int{(t.shape[0] + 127) / 128, (t.shape[1] + 127) / 128}, dtype: dtype.F32}
			tensors = append(tensors, scale)
		}
		tensors = append(tensors, t)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	header, _ := headerOf(tensors, dtype.BF16)
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) // Flush reports the first error of a bufio.Writer
	w.Write(header)
	rng := rand.New(rand.NewPCG(2, 3))
	for _, t := range tensors {
		for range t.elements() {
			switch t.dtype {
			case dtype.F8E4M3:
				w.WriteByte(byte(rng.Uint32()) &^ 0x40) // of magnitudes below 2, so none is NaN
			case dtype.F32:
				w.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(0.01*(1+rng.Float64())))))
			default:
				w.Write(binary.LittleEndian.AppendUint16(nil, dtype.BF16FromFloat64(0.02*rng.NormFloat64())))
			}
		}
	}
	config := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "torch_dtype": "bfloat16", "tie_word_embeddings": false,
		"quantization_config": deepSeekConfig["quantization_config"],
	}
	return errors.Join(w.Flush(), f.Close(), writeJSON(filepath.Join(dir, "config.json"), config))
}
