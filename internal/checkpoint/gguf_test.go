package checkpoint_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
)

const plainGGUF = "../../testdata/gguf/bases/plain/base.gguf"

// TestGGUFReadsAsItIs: names, order and bytes of the tensors are those of the file, and a view of
// the same tensors is the file again, byte for byte, keys and padding included.
func TestGGUFReadsAsItIs(t *testing.T) {
	want, err := os.ReadFile(plainGGUF)
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, plainGGUF)
	f := c.Files[0]
	if f.Tensors[0].Name != "token_embd.weight" || f.Tensors[2].Name != "blk.0.attn_q.weight" || !slices.Equal(f.Tensors[3].Shape, []uint64{16, 32}) {
		t.Errorf("tensors %v", f.Tensors)
	}
	if got := contentOf(t, f); !bytes.Equal(got, want) {
		t.Error("the file does not read as it is")
	}
	view, err := c.View(func(_ int, f *checkpoint.File) (shown []checkpoint.Shown) {
		for i := range f.Tensors {
			shown = append(shown, f.Tensors[i].Shown())
		}
		return shown
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, view.Files[0]); !bytes.Equal(got, want) {
		t.Error("a view of the same tensors is another file")
	}
}

func TestGGUFSaysItsModel(t *testing.T) {
	m := open(t, plainGGUF).Config
	if m.Architecture != "llama" || m.ModelType != "llama" || m.HeadSize != 8 || m.HiddenSize != 32 || m.VocabSize != 20 || *m.TieWordEmbeddings {
		t.Errorf("the keys say %+v", m)
	}
	if m := open(t, "../../testdata/gguf/bases/tied/base.gguf").Config; !*m.TieWordEmbeddings {
		t.Error("a model without a head is not tied")
	}
	if m := open(t, "../../testdata/gguf/bases/mixtral/base.gguf").Config; m.ModelType != "mixtral" || m.NExperts != 3 {
		t.Errorf("the keys say %+v", m)
	}
}

// TestStampOfGGUF: a stamp is one more key, the data stay aligned for file systems, and the header
// without the stamp is the one before.
func TestStampOfGGUF(t *testing.T) {
	f := open(t, plainGGUF).Files[0]
	before, err := f.Header(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := before.Stamped(checkpoint.Stamp{Tool: "test", Adapters: []checkpoint.StampAdapter{{Name: "ä", Content: "c", Weight: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if grown := len(raw) - len(before.Raw); grown <= 0 || grown%4096 != 0 {
		t.Errorf("the header grew by %d bytes", grown)
	}
	stamped, err := checkpoint.ParseHeader(raw)
	if err != nil {
		t.Fatal(err)
	}
	history := stamped.History("f")
	if len(history) != 1 || history[0].Adapters[0].Name != "ä" || !f.Fits(stamped) {
		t.Errorf("history %+v", history)
	}
	without, err := stamped.Without(history[0].Key)
	if err != nil || !bytes.Equal(without.Raw, before.Raw) {
		t.Errorf("without its stamp the header is another one: %v", err)
	}
}

// TestGGUFAdaptersAreNoBases: the error says that the file is an adapter.
func TestGGUFAdaptersAreNoBases(t *testing.T) {
	_, err := checkpoint.Open(t.Context(), "../../testdata/gguf/bases/plain/adapter.gguf")
	if err == nil || !strings.Contains(err.Error(), "holds an adapter") {
		t.Errorf("error %v", err)
	}
}

// FuzzGGUFBase: a file is refused, or reads as its header says, and a view of its values too.
func FuzzGGUFBase(f *testing.F) {
	for _, name := range []string{"plain", "mixtral", "quantised"} {
		file, err := os.ReadFile("../../testdata/gguf/bases/" + name + "/base.gguf")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
		f.Add(file[:len(file)/2])
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := checkpoint.New(t.Context(), "a.gguf", bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		p := make([]byte, 64)
		for _, g := range c.Files {
			for i := range g.Tensors {
				x := &g.Tensors[i]
				if err := x.ReadAt(t.Context(), p[:min(64, x.NBytes)], 0); err != nil {
					t.Errorf("%q: %v", x.Name, err)
				}
			}
			h, err := g.Header(t.Context())
			if err == nil {
				_, err = h.Stamped(checkpoint.Stamp{Tool: "test"})
			}
			if err != nil {
				t.Errorf("the header cannot be stamped: %v", err)
			}
		}
	})
}
