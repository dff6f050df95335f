package report

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/checkpoint"
)

// headerOnly is a file with a header that claims data behind it. Reading that data fails the test.
type headerOnly struct {
	t    *testing.T
	text []byte
}

func (h headerOnly) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(h.text)) {
		h.t.Errorf("data are read at %d", off)
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, h.text[off:]), nil
}

// transformer opens a checkpoint of n layers with square q, k, v and o of width d. Only its header
// exists.
func transformer(t *testing.T, n, d int) *checkpoint.Checkpoint {
	t.Helper()
	var b strings.Builder
	b.WriteString("{")
	var off int64
	size := 2 * int64(d) * int64(d)
	for i := range n {
		for _, name := range []string{"q", "k", "v", "o"} {
			if off > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, `"layers.%d.attention.%s.weight":{"dtype":"F16","shape":[%d,%d],"data_offsets":[%d,%d]}`, i, name, d, d, off, off+size)
			off += size
		}
	}
	b.WriteString("}")
	text := append(binary.LittleEndian.AppendUint64(nil, uint64(b.Len())), b.String()...)
	c, err := checkpoint.New(t.Context(), "synthetic", headerOnly{t, text}, int64(len(text))+off)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCostReproducesThePaper: the trainable parameters in tables 2, 4 and 5 and the appendix of Hu
// et al., arXiv:2106.09685.
func TestCostReproducesThePaper(t *testing.T) {
	for _, c := range []struct {
		model   string
		n, d    int
		targets string // "" is all four
		rank    int
		want    int64
	}{
		{"RoBERTa base", 12, 768, "q,v", 8, 294_912},
		{"RoBERTa large", 24, 1024, "q,v", 8, 786_432},
		{"DeBERTa XXL", 48, 1536, "q,v", 16, 4_718_592},
		{"GPT-2 M", 24, 1024, "q,v", 4, 393_216},
		{"GPT-2 L", 36, 1280, "q,v", 4, 737_280},
		{"GPT-3, r_v = 2", 96, 12288, "v", 2, 4_718_592},
		{"GPT-3, r_q = r_v = 1", 96, 12288, "q,v", 1, 4_718_592},
		{"GPT-3, r_q = r_v = 2", 96, 12288, "q,v", 2, 9_437_184},
		{"GPT-3, r_q = r_v = 8", 96, 12288, "q,v", 8, 37_748_736},
		{"GPT-3, r_q = r_v = 64", 96, 12288, "q,v", 64, 301_989_888},
		{"GPT-3, one matrix, r = 8", 96, 12288, "q", 8, 18_874_368},
		{"GPT-3, all four, r = 2", 96, 12288, "q,k,v,o", 2, 18_874_368},
		{"GPT-3, all four, r = 4", 96, 12288, "q,k,v,o", 4, 37_748_736},
		{"GPT-3, all four, r = 64", 96, 12288, "", 64, 603_979_776},
	} {
		var targets []string
		if c.targets != "" {
			targets = strings.Split(c.targets, ",")
		}
		r, err := DescribeCheckpoint(transformer(t, c.n, c.d), CheckpointOptions{Rank: c.rank, Targets: targets})
		if err != nil {
			t.Fatal(err)
		}
		if r.Cost.Parameters != c.want {
			t.Errorf("%s: %q with rank %d cost %d parameters, want %d", c.model, c.targets, c.rank, r.Cost.Parameters, c.want)
		}
		var sum int64
		for _, target := range r.Cost.Targets {
			sum += target.Parameters
			if target.Modules != c.n {
				t.Errorf("%s: %d modules are called %s, want %d", c.model, target.Modules, target.Name, c.n)
			}
		}
		if sum != c.want {
			t.Errorf("%s: the targets cost %d parameters together, want %d", c.model, sum, c.want)
		}
	}
}

func TestCostOfAModuleThatIsNotThere(t *testing.T) {
	if _, err := DescribeCheckpoint(transformer(t, 1, 8), CheckpointOptions{Rank: 4, Targets: []string{"q", "q_proj"}}); !errors.Is(err, format.ErrMismatch) || !strings.Contains(err.Error(), "q_proj") {
		t.Errorf("DescribeCheckpoint = %v, want a mismatch that names q_proj", err)
	}
}

func TestDescribeSaysWhatTheFixturesAre(t *testing.T) {
	for _, c := range []struct {
		dir       string
		layers    int
		mergeable bool
		untrained int
		nonFinite bool
	}{
		{"merge/bf16-all-linear/adapter", 14, true, 0, false},
		{"merge/untrained/adapter", 2, true, 2, false},
		{"refuse/infinite-factor/adapter", 2, false, 0, true},
		{"refuse/ia3/adapter", 0, false, 0, false},
	} {
		src, err := convert.Open(t.Context(), "../../testdata/peft/"+c.dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		r, err := Describe(context.Background(), src, Options{Values: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Layers) != c.layers || r.Mergeable != c.mergeable || r.Values.Untrained != c.untrained || (r.Values.NonFinite > 0) != c.nonFinite {
			t.Errorf("%s: %d layers, mergeable %v, %+v", c.dir, len(r.Layers), r.Mergeable, *r.Values)
		}
		if len(r.Refusals) > 0 == r.Mergeable {
			t.Errorf("%s: mergeable %v and refusals %q", c.dir, r.Mergeable, r.Refusals)
		}
	}
}

// TestDescribeExplainsMethods: the report names the steps of merge and, for stacked experts, the
// reason for the chosen dimension.
func TestDescribeExplainsMethods(t *testing.T) {
	for _, c := range []struct {
		dir   string
		words []string
	}{
		{"merge/bf16-all-linear/adapter", nil},
		{"merge/dora-gpt2/adapter", []string{"DoRA"}},
		{"merge/experts/adapter", []string{"mlp.experts.down_proj", "shapes", "Options.ExpertInput"}},
		{"merge/experts-0.18-square-alone/adapter", []string{"square ones its first dimension"}},
		{"merge/experts-0.19.0-square-alone/adapter", []string{"square ones its outputs"}},
		{"merge/experts-square-alone/adapter", []string{"square ones its inputs"}},
		{"merge/experts-square-flag/adapter", []string{"shapes", "Options.ExpertInput"}},
		{"merge/multihead-attention/adapter", []string{"once", "Options.OutProjTwice"}},
		{"merge/pissa/adapter", []string{"PiSSA", "Options.RecomputeResidual"}},
		{"refuse/kasa/adapter", nil},
	} {
		src, err := convert.Open(t.Context(), "../../testdata/peft/"+c.dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		r, err := Describe(context.Background(), src, Options{})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(r.Methods, "\n")
		if len(c.words) == 0 && text != "" {
			t.Errorf("%s: methods %q, want none", c.dir, r.Methods)
		}
		for _, w := range c.words {
			if !strings.Contains(text, w) {
				t.Errorf("%s: methods %q do not mention %q", c.dir, r.Methods, w)
			}
		}
	}
}

// TestMisgivings: convert carries adapters that merge refuses, and warns. The fixtures test the
// refusals themselves.
func TestMisgivings(t *testing.T) {
	for dir, words := range map[string][]string{
		"merge/bf16-all-linear/adapter":  nil,
		"refuse/ia3/adapter":             {"merge refuses this adapter: "},
		"refuse/infinite-factor/adapter": {"without Options.AllowNonFinite: 4 of its values"},
	} {
		src, err := convert.Open(t.Context(), "../../testdata/peft/"+dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		got, err := Misgivings(t.Context(), src)
		if err != nil || len(got) != len(words) {
			t.Errorf("Misgivings(%s) = %q, %v, want %d", dir, got, err, len(words))
			continue
		}
		for i, w := range words {
			if !strings.Contains(got[i], w) {
				t.Errorf("Misgivings(%s) = %q, want %q in it", dir, got[i], w)
			}
		}
	}
}

// TestSizeOfALayer: a letter stands for a size that the adapter does not tell.
func TestSizeOfALayer(t *testing.T) {
	for _, c := range []struct {
		layer Layer
		want  string
	}{
		{Layer{M: 4, N: 3}, "4×3"}, {Layer{M: 4, N: 3, Kernel: []uint64{3, 1}}, "4×3×3×1"}, {Layer{M: 4}, "4×n"}, {Layer{N: 3}, "m×3"},
	} {
		if got := c.layer.Size(); got != c.want {
			t.Errorf("Size of %+v = %s, want %s", c.layer, got, c.want)
		}
	}
}

// TestCostLeavesOutEndsOfGGUF: the embedding and the head of llama.cpp are no linear layers to
// adapt unless they are named. Each expert of a stack counts.
func TestCostLeavesOutEndsOfGGUF(t *testing.T) {
	attention := int64(2 * (2*(32+32) + 2*(16+32)))
	for base, want := range map[string]int64{"plain": attention + 2*3*(48+32), "mixtral": attention + 2*3*3*(24+32)} {
		c, err := checkpoint.Open(t.Context(), "../../testdata/gguf/bases/"+base+"/base.gguf")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		r, err := DescribeCheckpoint(c, CheckpointOptions{Rank: 2})
		if err != nil {
			t.Fatal(err)
		}
		if r.Cost.Parameters != want {
			t.Errorf("the cost for %s is %d parameters, want %d: %+v", base, r.Cost.Parameters, want, r.Cost.Targets)
		}
	}
}
