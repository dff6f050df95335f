package merge_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	stored "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// applyVectors holds the cases that make.py there wrote from spec/APPLY.md. It shares no code with
// loratool.
const applyVectors = "../testdata/vectors/apply"

// applyVector is a record of index.txt; the README.md beside it explains the fields.
type applyVector struct {
	name, expect, base, config string
	rules                      []string
	adapters, answers, without []string
	tensors                    map[string]string // name -> "dtype shape sha256"
	near                       map[string]string // name -> "dtype shape bytes", in hex
	anyNaN                     bool
}

func readApplyVectors(t *testing.T) (all []applyVector) {
	t.Helper()
	for _, r := range testkit.Index(t, applyVectors) {
		v := applyVector{tensors: make(map[string]string), near: make(map[string]string)}
		for _, f := range r.Fields {
			switch f.Key {
			case "case":
				v.name = f.Value
			case "expect":
				v.expect = f.Value
			case "rule":
				v.rules = strings.Fields(f.Value)
			case "base":
				v.base = filepath.Join(applyVectors, f.Value)
			case "config":
				v.config = f.Value
			case "adapter":
				v.adapters = append(v.adapters, f.Value)
			case "answer":
				v.answers = append(v.answers, f.Value)
			case "near":
				name, rest, _ := strings.Cut(f.Value, " ")
				v.near[name] = rest
			case "comment":
			case "nan":
				v.anyNaN = true
			case "without":
				v.without = append(v.without, f.Value)
			case "tensor":
				name, rest, _ := strings.Cut(f.Value, " ")
				v.tensors[name] = rest
			default:
				t.Fatalf("line %d: unknown key %q", r.Line, f.Key)
			}
		}
		all = append(all, v)
	}
	return all
}

// TestApplyVectors merges every case. It compares all tensors with the base and with the digests of
// the index, and an error with the kind of the broken rule.
func TestApplyVectors(t *testing.T) {
	for _, v := range readApplyVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			var m output.Memory
			err := v.merge(t, &m)
			if v.expect != "ok" {
				v.checkError(t, err)
				return
			}
			if err != nil {
				t.Fatal(err, "\nhint: ", fault.Hint(err))
			}
			want := v.digests(t, v.files(t))
			for _, name := range v.without {
				delete(want, name)
			}
			maps.Copy(want, v.tensors)
			got := v.digests(t, m.FS())
			v.compareNear(t, m.FS(), want, got)
			for _, name := range slices.Sorted(maps.Keys(want)) {
				if got[name] != want[name] {
					t.Errorf("%q is %q, want %q", name, got[name], want[name])
				}
				delete(got, name)
			}
			for name := range got {
				t.Errorf("%q is in the output", name)
			}
		})
	}
}

func (v *applyVector) files(t *testing.T) fstest.MapFS {
	t.Helper()
	b, err := os.ReadFile(v.base)
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"model.safetensors": {Data: b}}
	if v.config != "" {
		files["config.json"] = &fstest.MapFile{Data: []byte(v.config)}
	}
	return files
}

// merge merges as the vector says.
func (v *applyVector) merge(t *testing.T, out output.Output) error {
	t.Helper()
	base, err := checkpoint.OpenFS(t.Context(), v.files(t), ".")
	if err != nil {
		return err
	}
	defer base.Close()
	var adapters []merge.Adapter
	for _, a := range v.adapters {
		name, weight, _ := strings.Cut(a, " ")
		src, err := convert.Open(t.Context(), filepath.Join(applyVectors, name), convert.Options{})
		if err != nil {
			return err
		}
		defer src.Close()
		ω, err := strconv.ParseFloat(weight, 64)
		if err != nil {
			t.Fatal(err)
		}
		adapters = append(adapters, merge.Adapter{Source: src, Name: name, Weight: ω})
	}
	plan, err := merge.New(t.Context(), base, adapters, v.options(t))
	if err != nil {
		return err
	}
	defer plan.Close()
	_, err = plan.RunTo(context.Background(), out)
	return err
}

func (v *applyVector) options(t *testing.T) (o merge.Options) {
	t.Helper()
	for _, answer := range v.answers {
		name, value, _ := strings.Cut(answer, " ")
		switch n, _ := strconv.Atoi(value); name {
		case "linear-input":
			o.LinearInput = n
		case "expert-input":
			o.ExpertInput = n
		case "expert-slowest":
			o.ExpertsSlowest = true
		case "expert-turns":
			o.ExpertTurns = true
		case "out-proj-twice":
			o.OutProjTwice = true
		case "recompute-residual":
			o.RecomputeResidual = true
		case "tied":
			o.Tied = merge.Tied(value)
		case "grow-vocabulary":
			o.GrowVocabulary = true
		case "add-tensors":
			o.AddTensors = true
		case "any-base":
			o.AnyBase = true
		case "again":
			o.Again = true
		case "allow-nonfinite":
			o.AllowNonFinite = true
		default:
			t.Fatalf("unknown answer %q", name)
		}
	}
	return o
}

// ruleWords are words of the messages about a broken rule. They show that a refusal is about the
// rule, as many rules have one kind.
var ruleWords = map[string]string{
	"R74": "it announces", "R75": "does not require", "R76": "unknown roles",
	"R79": "are the same adapter", "R80": "changes nothing",
	"R81": "is stored as .*; merge supports", "R82": "must be dequantised",
	"R83": "was made for another base", "R84": "has the scale [+-]Inf",
	"R85": "factors are stored in another dtype", "R86": "NaN or infinite",
	"R87": "finite weights? would become|NaN or infinite as F16",
	"R88": "the base lacks|the base has none|the base has no |adapter of its own around|the last layer|experts up to number|without a dot|the base fuses|apart; the adapter has",
	"R89": "fit the base in several ways", "R90": "of an unknown kind",
	"R130": "the base lacks|in several places|not fit|has none there|, and the base has", "R131": "divides its weight",
	"R137": "ΔW is .* but the base's weight has shape", "R138": "and a scaling",
	"R139": "the difference .* has shape",
	"R143": "B·A is|into whole heads", "R144": "no config.json that says",
	"R91": "DoRA or a bias beside", "R92": "change the same elements",
	"R93": "but the (base's weight has shape|factors are those of a linear layer)",
	"R94": "is square, and only fan_in_fan_out", "R95": "the embedding .* weight has shape",
	"R96": "convolution", "R97": "the base's bias has shape", "R98": "output features|has .* inputs",
	"R99": "is DoRA.* weight must be 1", "R100": "magnitudes of DoRA.* order",
	"R101": "do not fit|enable_lora lists|the factors are those of a linear layer",
	"R102": "is not pooled", "R103": "which of its projections",
	"R104": "target_parameters names", "R105": "want .E",
	"R106": "fits? the shapes|fit together|the base's parameter",
	"R107": "are square, .* does not tell", "R108": "one of . parts|a whole expert|the adapter changes number",
	"R109": "interleave",
	"R110": "the experts .*(B·A is|lora_A has shape|but the base has)|the base lacks",
	"R111": "no known meaning", "R112": "weight must be 1", "R113": "replaced twice",
	"R114": "whole with shape", "R115": "the adapter saves",
	"R116": "trained token rows|trainable_token_indices",
	"R117": "subtracted the", "R118": "initialisation|holds NaN|decomposes", "R119": "subtract",
	"R120": "is replaced by a tensor in", "R121": "trained token rows and another change",
	"R122": "as stacked experts and another", "R123": "tied to its other end",
	"R125": "both the input embedding and the output head", "R126": "untied head|untying it",
	"R127": "does not tie|cannot tell", "R128": "the vocabulary grows",
	"R129": "the base lacks|the base has none there",
	"R140": "the order of llama.cpp( is for B of linear|, and the base (divides|stacks))",
	"R145": "torchtune trains none of the type", "R146": "is put in order",
	"R141": "does not say how many rows a head has", "R142": "want a multiple of the base's head size",
}

// checkError demands the kind of a rule that the vector names, and a message about it.
func (v *applyVector) checkError(t *testing.T, err error) {
	t.Helper()
	kinds := ruleKinds(t)
	if err == nil {
		t.Fatalf("merged, want %s %v", v.expect, v.rules)
	}
	if kinds[v.rules[0]] != v.expect {
		t.Errorf("%s is %s in the text, and %s in the index", v.rules[0], kinds[v.rules[0]], v.expect)
	}
	if !slices.ContainsFunc(v.rules, func(rule string) bool {
		return kinds[rule] == fault.KindName(err) && ruleWords[rule] != "" &&
			regexp.MustCompile(ruleWords[rule]).MatchString(err.Error())
	}) {
		t.Errorf("%s: %v, want %s about %v", fault.KindName(err), err, v.expect, v.rules)
	}
}

// ruleKinds reads the kind of error of every rule from the specification.
func ruleKinds(t *testing.T) map[string]string {
	t.Helper()
	kinds := make(map[string]string)
	for _, name := range []string{"FORMAT.md", "APPLY.md", "NAMES.md", "METHODS.md"} {
		text, err := os.ReadFile(filepath.Join("../spec", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range specRule.FindAllSubmatch(text, -1) {
			kinds[string(m[1])] = string(m[2])
		}
	}
	return kinds
}

var specRule = regexp.MustCompile(`(?m)^\*\*(R\d+)\.\*\* .*\[(\w+)\]$`)

// compareNear compares the tensors whose elements may be neighbours of the right ones
// (spec/METHODS.md, section 3), logs how many are, and takes the tensors out of want and got.
func (v *applyVector) compareNear(t *testing.T, files fs.FS, want, got map[string]string) {
	t.Helper()
	c, err := stored.OpenFS(t.Context(), files, ".")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, text := range v.near {
		delete(want, name)
		delete(got, name)
		ref, ok := c.Lookup(name)
		if !ok {
			t.Errorf("%q is not in the output", name)
			continue
		}
		b, d := read(t, c, name), ref.Tensor.DType
		kind := fmt.Sprintf("%s %s", d, strings.ReplaceAll(fmt.Sprint(ref.Tensor.Shape), " ", ","))
		end := strings.LastIndexByte(text, ' ')
		right, err := hex.DecodeString(text[end+1:])
		if err != nil || kind != text[:end] || len(b) != len(right) {
			t.Errorf("%q is %s of %d bytes, want %q", name, kind, len(b), text)
			continue
		}
		others, width := 0, d.Bits()/8
		for i := 0; i < len(b); i += width {
			switch n := steps(b[i:i+width], right[i:i+width]); {
			case n > 1:
				t.Errorf("%q: element %d is %x, want %x or a neighbour", name, i/width, b[i:i+width], right[i:i+width])
			case n == 1:
				others++
			}
		}
		if others > 0 {
			t.Logf("%q: %d of %d elements are neighbours of the right ones", name, others, len(b)/width)
		}
	}
}

// steps returns how many numbers of a binary format lie between a and b, and one of them: 0 if they
// are equal, 1 for neighbours. −0 is +0 here.
func steps(a, b []byte) uint64 {
	place := func(x []byte) int64 {
		var word [8]byte
		copy(word[8-len(x):], x)
		bits := binary.LittleEndian.Uint64(word[:])
		magnitude := int64(bits << 1 >> 1 >> (64 - 8*len(x)))
		if bits>>63 == 1 {
			return -magnitude
		}
		return magnitude
	}
	x, y := place(a), place(b)
	return uint64(max(x, y)) - uint64(min(x, y))
}

// digests returns "dtype shape sha256" of each tensor. If the vector leaves open which NaN comes
// out, all are the positive one that is quiet and has no payload.
func (v *applyVector) digests(t *testing.T, files fs.FS) map[string]string {
	t.Helper()
	c, err := stored.OpenFS(t.Context(), files, ".")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sums := make(map[string]string)
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		b := read(t, c, name)
		if v.anyNaN {
			quietNaNs(ref.Tensor.DType, b)
		}
		shape := strings.ReplaceAll(fmt.Sprint(ref.Tensor.Shape), " ", ",")
		sums[name] = fmt.Sprintf("%s %s %x", ref.Tensor.DType, shape, sha256.Sum256(b))
	}
	return sums
}

// quietNaNs replaces every NaN among the elements of b.
func quietNaNs(d dtype.Type, b []byte) {
	fraction := map[dtype.Type]int{dtype.F64: 52, dtype.F32: 23, dtype.F16: 10, dtype.BF16: 7}[d]
	if fraction == 0 {
		return
	}
	width := d.Bits() / 8
	for e := range slices.Chunk(b, width) {
		var word [8]byte
		copy(word[:], e)
		magnitude := binary.LittleEndian.Uint64(word[:]) &^ (1 << (8*width - 1))
		infinity := uint64(1)<<(8*width-1) - 1<<fraction
		if magnitude > infinity {
			binary.LittleEndian.PutUint64(word[:], infinity|1<<(fraction-1))
			copy(e, word[:])
		}
	}
}
