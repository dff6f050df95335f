package audit_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/audit"
	files "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/merge"
)

// TestNewCodesAreJudged: a merge that gives weights new codes is told from one with another code,
// from one of another adapter, and from one whose codes were chosen at random.
func TestNewCodesAreJudged(t *testing.T) {
	for i, fixture := range []string{"fp8_block_128", "ct_w4_asym_g32", "ct_nvfp4"} {
		base := "../../testdata/quant/" + fixture
		c, err := files.Open(t.Context(), base)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		weight := files.QuantisedOf(c)[0]
		ref, _ := c.Lookup(weight.Name)
		rng := rand.New(rand.NewPCG(71, uint64(i)))
		module := strings.TrimSuffix(weight.Name, ".weight")
		ours := adapterOn(t, rng, module, ref.Tensor.Shape[0], ref.Tensor.Shape[1])
		another := adapterOn(t, rng, module, ref.Tensor.Shape[0], ref.Tensor.Shape[1])
		merged := func(o merge.Options) string {
			o.Requantise, o.AcceptLoss = true, true
			return mergePath(t, base, ours, o)
		}
		verdict := func(merged string, adapters []merge.Adapter) audit.Tensor {
			r := auditPaths(t, base, merged, adapters)
			at := slices.IndexFunc(r.Tensors, func(x audit.Tensor) bool { return x.Module != "" })
			if r.Verdict != r.Tensors[at].Verdict {
				t.Errorf("%s: the verdict on all is %v, and on the weight %v", fixture, r.Verdict, r.Tensors[at].Verdict)
			}
			return r.Tensors[at]
		}
		out := merged(merge.Options{})
		if x := verdict(out, ours); x.Verdict != audit.AsClaimed || x.Finding != audit.Requantised {
			t.Errorf("%s: %+v", fixture, x)
		}
		if x := verdict(out, another); x.Verdict != audit.NotAsClaimed {
			t.Errorf("%s: of another adapter: %+v", fixture, x)
		}
		if x := verdict(base, ours); x.Verdict != audit.NotAsClaimed {
			t.Errorf("%s: of the base: %+v", fixture, x)
		}
		changeCode(t, out, weight.Parts[0])
		if x := verdict(out, ours); x.Verdict != audit.NotAsClaimed || x.Finding != audit.Elements {
			t.Errorf("%s: with another code: %+v", fixture, x)
		}
		if fixture == "fp8_block_128" {
			stamped := merged(merge.Options{Stochastic: true, Seed: 7})
			if x := verdict(stamped, ours); x.Verdict != audit.AsClaimed || x.Finding != audit.Requantised || !strings.Contains(x.Text, "seed 7") {
				t.Errorf("%s: with codes chosen at random: %+v", fixture, x)
			}
			bare := merged(merge.Options{Stochastic: true, Seed: 7})
			hideStamps(t, bare, weight.Parts[0])
			if x := verdict(bare, ours); x.Verdict != audit.Inconclusive || x.Finding != audit.Requantised {
				t.Errorf("%s: with codes chosen at random, and no stamp: %+v", fixture, x)
			}
			changeCode(t, stamped, weight.Parts[0])
			if x := verdict(stamped, ours); x.Verdict != audit.NotAsClaimed || x.Finding != audit.Elements {
				t.Errorf("%s: with codes chosen at random, a stamp, and another code: %+v", fixture, x)
			}
		}
	}
}

// hideStamps renames the stamps of the file that holds a tensor.
func hideStamps(t *testing.T, path, tensor string) {
	t.Helper()
	editFile(t, path, tensor, func(file []byte, _, _ int64) {
		at := bytes.Index(file, []byte("loratool.merge."))
		if at < 0 {
			t.Fatal("no stamp")
		}
		file[at] = '_'
	})
}

// changeCode changes a byte in the middle of a tensor.
func changeCode(t *testing.T, path, tensor string) {
	t.Helper()
	editFile(t, path, tensor, func(file []byte, off, n int64) { file[off+n/2] ^= 0x11 })
}

// editFile edits the file that holds a tensor, with n bytes at off.
func editFile(t *testing.T, path, tensor string, edit func(file []byte, off, n int64)) {
	t.Helper()
	c, err := files.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ref, _ := files.Stored(c).Lookup(tensor)
	file, err := os.ReadFile(ref.Tensor.Path())
	if err != nil {
		t.Fatal(err)
	}
	edit(file, ref.Tensor.Off, ref.Tensor.NBytes)
	if err := os.WriteFile(ref.Tensor.Path(), file, 0o666); err != nil {
		t.Fatal(err)
	}
}
