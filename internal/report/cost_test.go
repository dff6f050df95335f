package report_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/internal/testkit"
)

// transformer returns a checkpoint of layers with square q, k, v and o matrices. Only its header
// exists.
func transformer(t *testing.T, layers, width int) *checkpoint.Checkpoint {
	var entries []string
	size := width * width
	for i := range layers {
		for _, name := range []string{"q_proj", "k_proj", "v_proj", "o_proj"} {
			off := len(entries) * size
			entries = append(entries, fmt.Sprintf(`"layers.%d.%s.weight":{"dtype":"U8","shape":[%d,%d],"data_offsets":[%d,%d]}`, i, name, width, width, off, off+size))
		}
	}
	header := testkit.Raw("{"+strings.Join(entries, ",")+"}", nil)
	c, err := checkpoint.New(t.Context(), "model", headerOnly{bytes.NewReader(header)}, int64(len(header)+len(entries)*size))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type headerOnly struct{ *bytes.Reader }

func (h headerOnly) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.Reader.ReadAt(p, off)
	if err == io.EOF { // data would follow the header
		return n, nil
	}
	return n, err
}

// TestCostReproducesThePaper: the parameter counts of Hu et al., arXiv:2106.09685, tables 2, 4 and
// 5 and the appendix.
func TestCostReproducesThePaper(t *testing.T) {
	for _, c := range []struct {
		model         string
		layers, width int
		targets       string
		rank          int
		want          int64
	}{
		{"RoBERTa base", 12, 768, "q_proj,v_proj", 8, 294_912},
		{"RoBERTa large", 24, 1024, "q_proj,v_proj", 8, 786_432},
		{"DeBERTa XXL", 48, 1536, "q_proj,v_proj", 16, 4_718_592},
		{"GPT-2 M", 24, 1024, "q_proj,v_proj", 4, 393_216},
		{"GPT-2 L", 36, 1280, "q_proj,v_proj", 4, 737_280},
		{"GPT-3", 96, 12288, "v_proj", 2, 4_718_592},
		{"GPT-3", 96, 12288, "q_proj,v_proj", 1, 4_718_592},
		{"GPT-3", 96, 12288, "q_proj,v_proj", 8, 37_748_736},
		{"GPT-3", 96, 12288, "q_proj,k_proj,v_proj,o_proj", 4, 37_748_736},
		{"GPT-3", 96, 12288, "q_proj", 8, 18_874_368},
		{"GPT-3", 96, 12288, "q_proj,v_proj", 2, 9_437_184},
		{"GPT-3", 96, 12288, "q_proj,v_proj", 64, 301_989_888},
		{"GPT-3", 96, 12288, "", 64, 603_979_776},
	} {
		var targets []string
		if c.targets != "" {
			targets = strings.Split(c.targets, ",")
		}
		r, err := report.DescribeCheckpoint(transformer(t, c.layers, c.width), c.rank, targets)
		if err != nil {
			t.Fatal(err)
		}
		if r.Cost.Parameters != c.want {
			t.Errorf("the cost of %s with r = %d on %q is %d, want %d", c.model, c.rank, c.targets, r.Cost.Parameters, c.want)
		}
		var sum int64
		for _, target := range r.Cost.Targets {
			sum += target.Parameters
			if target.Modules != c.layers {
				t.Errorf("%s: %d modules are called %s, want %d", c.model, target.Modules, target.Name, c.layers)
			}
		}
		if sum != c.want {
			t.Errorf("the costs of the targets of %s add up to %d, want %d", c.model, sum, c.want)
		}
	}
}
