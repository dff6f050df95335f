package quant

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// findGPTQ recognises GPTQ and AWQ by qweight, words of 32 bits with the codes. The widths tell the
// two apart, and the number of bits: GPTQ has a word for each output, AWQ and the zero points of
// both have one for several outputs.
func findGPTQ(f *finder, t *Tensor) error {
	module, ok := strings.CutSuffix(t.Name, ".qweight")
	if !ok {
		return nil
	}
	w := Weight{Name: module + ".weight", Scheme: "GPTQ or AWQ", Parts: []string{t.Name, module + ".qzeros", module + ".scales"}}
	w.Parts = append(w.Parts, f.has(module+".g_idx")...)
	if len(w.Parts) > partIndex {
		w.Scheme = "GPTQ"
	}
	if isEmbedding(module) {
		f.refuse(w, fault.Unsupported, "%q is an embedding that is stored as GPTQ, which this version does not read: GPTQModel stores it as tokens×features", w.Name)
		return nil
	}
	if !hasAll(f, w, module) {
		return nil
	}
	c := &inOut{name: w.Name}
	if kind, problem := shapeOfWords(f, &w, c); problem != "" {
		f.refuse(w, kind, "%q is stored as %s, and %s", w.Name, w.Scheme, problem)
		return nil
	}
	if problem := styleOfWords(f, &w, c); problem != "" {
		f.refuse(w, fault.Unsupported, "%q is stored as %s, and %s", w.Name, w.Scheme, problem)
		return nil
	}
	w.Scheme = fmt.Sprintf("%s in %s", w.Scheme, fault.Count(c.bits, "bit"))
	w.Shape, w.Codec = []uint64{uint64(c.out), uint64(c.in)}, c
	f.add(w)
	return nil
}

// isEmbedding reports whether a module's name is that of an input embedding.
func isEmbedding(module string) bool {
	leaf := module[strings.LastIndexByte(module, '.')+1:]
	return leaf == "wte" || strings.HasPrefix(leaf, "embed") || strings.HasSuffix(leaf, "embeddings")
}

// maxGroups bounds the groups of a weight: a row of it needs the scales of all.
const maxGroups = 1 << 20

// shapeOfWords compares the shapes of the tensors, and fills the fields that follow. problem is a
// clause, "" for none.
func shapeOfWords(f *finder, w *Weight, c *inOut) (kind fault.Kind, problem string) {
	words, zeros, scales := f.tensor(w.Parts[partWords]), f.tensor(w.Parts[partZeros]), f.tensor(w.Parts[partGroupScales])
	switch {
	case scales == nil:
		return fault.Mismatch, fmt.Sprintf("its scales %q are missing", w.Parts[partGroupScales])
	case zeros == nil:
		return fault.Mismatch, fmt.Sprintf("its zero points %q are missing", w.Parts[partZeros])
	case words.DType != dtype.I32 || zeros.DType != dtype.I32:
		return fault.Unsupported, fmt.Sprintf("qweight is %v and qzeros %v, want I32 (other dtypes are of kernels for graphics processors, such as gemv_fast)", words.DType, zeros.DType)
	case !slices.Contains([]dtype.Type{dtype.F16, dtype.BF16, dtype.F32}, scales.DType):
		return fault.Mismatch, fmt.Sprintf("its scales are %v, want F16, BF16 or F32", scales.DType)
	case len(words.Shape) != 2 || len(zeros.Shape) != 2 || len(scales.Shape) != 2 || slices.Contains(slices.Concat(words.Shape, zeros.Shape, scales.Shape), 0):
		return fault.Mismatch, fmt.Sprintf("qweight, qzeros and scales have the shapes %d, %d and %d, want matrices", words.Shape, zeros.Shape, scales.Shape)
	case words.Shape[0] > 1<<40 || words.Shape[1] > 1<<40 || scales.Shape[1] > 1<<40 || zeros.Shape[1] > 1<<40:
		return fault.Limit, fmt.Sprintf("qweight has the shape %d, want sides of at most 2^40", words.Shape)
	case zeros.Shape[0] != scales.Shape[0] || scales.Shape[0] > maxGroups:
		return fault.Mismatch, fmt.Sprintf("qzeros and scales have %d and %d groups, want the same number, of at most %d", zeros.Shape[0], scales.Shape[0], maxGroups)
	}
	out := scales.Shape[1]
	bits := 32 * zeros.Shape[1] / out
	c.out, c.groups, c.bits, c.scales = int64(out), int64(scales.Shape[0]), int64(bits), scales.DType
	w.DType = scales.DType
	if w.DType == dtype.F32 {
		w.DType = f.config.dtypeOf(nil)
	}
	switch {
	case bits == 0 || bits > 8 || bits*out != 32*zeros.Shape[1]:
		return fault.Mismatch, fmt.Sprintf("qzeros of shape %d and scales of shape %d belong to no number of bits", zeros.Shape, scales.Shape)
	case words.Shape[1] == out:
		if w.Scheme = "GPTQ"; bits != 2 && bits != 4 && bits != 8 {
			return fault.Unsupported, fmt.Sprintf("its codes of %d bits cross words (planar), want 2, 4 or 8 bits", bits)
		}
		c.in = int64(32 * words.Shape[0] / bits)
	case words.Shape[1] == zeros.Shape[1] && len(w.Parts) <= partIndex && bits == 4:
		w.Scheme, c.order, c.in = "AWQ", &orderAWQ, int64(words.Shape[0])
	default:
		return fault.Unsupported, fmt.Sprintf("qweight of shape %d with scales of shape %d is neither GPTQ's, [in·bits/32, out], nor that of AWQ's gemm, [in, out/8]; gemv and marlin are not read", words.Shape, scales.Shape)
	}
	return fault.Mismatch, groupsOfWords(f, w, c)
}

// groupsOfWords finds which inputs share a scale, and refuses a weight that contradicts the
// configuration: some programs believe the one, and others the other.
func groupsOfWords(f *finder, w *Weight, c *inOut) (problem string) {
	says := f.config.Group
	if f.config.hasExceptions {
		says = Group{}
	}
	size, want := says.Size, c.groups
	switch {
	case size < 0:
		size, want = c.in, 1
	case size > 0:
		want = (c.in + size - 1) / size
	case c.in%c.groups == 0:
		size = c.in / c.groups
	}
	switch {
	case says.Bits != 0 && says.Bits != c.bits:
		return fmt.Sprintf("its codes have %s, want %d as quantization_config says", fault.Count(c.bits, "bit"), says.Bits)
	case want != c.groups:
		return fmt.Sprintf("its %d inputs are in %s, want %d for a group_size of %d", c.in, fault.Count(c.groups, "group"), want, says.Size)
	}
	if len(w.Parts) > partIndex {
		if index := f.tensor(w.Parts[partIndex]); index.DType != dtype.I32 || !slices.Equal(index.Shape, []uint64{uint64(c.in)}) {
			return fmt.Sprintf("g_idx is %v of shape %d, want I32 of shape %d", index.DType, index.Shape, []int64{c.in})
		}
		if c.groups > c.in {
			return fmt.Sprintf("it has %d groups of %d inputs", c.groups, c.in)
		}
		if f.config.isInOrder && !f.config.hasExceptions {
			c.inOrder = size
		}
		return ""
	}
	if c.group = size; size == 0 {
		return fmt.Sprintf("its %d inputs are in %d groups, and no group_size tells which belong to each", c.in, c.groups)
	}
	return ""
}

// styleOfWords finds what the shapes leave to the configuration: which zero points the stored ones
// stand for, and in which order the codes lie.
func styleOfWords(f *finder, w *Weight, c *inOut) (problem string) {
	method, layout := strings.ToLower(f.config.Method), strings.ToLower(f.config.Format)
	if strings.HasSuffix(method, "auto-round") {
		method, layout = "", strings.TrimPrefix(layout, "auto_round:")
		switch layout {
		case "auto_gptq":
			method, layout = "gptq", "gptq"
		case "auto_round", "gptqmodel":
			method, layout = "gptq", "gptq_v2"
		case "auto_awq":
			method, layout = "awq", "gemm"
		}
	}
	isAWQ := c.order != nil
	switch {
	case isAWQ && (method == "" && layout == "" || method == "awq" && (layout == "" || layout == "gemm")):
		return ""
	case isAWQ:
		return fmt.Sprintf("quantization_config says %q in the layout %q, want awq and gemm", f.config.Method, f.config.Format)
	case method == "" && layout == "":
		return "no quantization_config tells whether its zero points are stored less 1 (checkpoint_format gptq) or as they are (gptq_v2); put its config.json beside it"
	case method != "gptq":
		return fmt.Sprintf("quantization_config says %q in the layout %q, want gptq", f.config.Method, f.config.Format)
	case layout == "gptq_v2":
		w.Scheme, c.zeros = "GPTQ v2", zeroAsStored
		return ""
	case layout != "" && layout != "gptq":
		return fmt.Sprintf("checkpoint_format is %q, want gptq or gptq_v2", f.config.Format)
	}
	if c.zeros = zeroLessOne; f.config.isByGPTQModel {
		c.zeros = zeroWordsLess
	}
	return ""
}
