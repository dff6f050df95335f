package merge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// TestADirectoryOfPEFTForEachComponentMergesLikeTheAdapter writes the components of the adapters of
// the cases one by one as PEFT's directories, and merges all of them. Every element is that of
// diffusers or of kohya. testdata/diffusion/written_peft.py has loaded with PEFT the directories
// with the digests in written_peft.json, and has got the same values; the bytes are the same now.
func TestADirectoryOfPEFTForEachComponentMergesLikeTheAdapter(t *testing.T) {
	var index struct {
		Cases []diffusionCase `json:"cases"`
	}
	if err := json.Unmarshal(file(t, filepath.Join(diffusion, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	var written struct {
		Files map[string]string `json:"files"`
	}
	if err := json.Unmarshal(file(t, filepath.Join(diffusion, "written_peft.json")), &written); err != nil {
		t.Fatal(err)
	}
	seen, loaded := make(map[string]bool), make(map[string]bool)
	several := 0
	for _, c := range index.Cases {
		if seen[fmt.Sprint(c.Adapters)] {
			continue
		}
		seen[fmt.Sprint(c.Adapters)] = true
		t.Run(c.Name, func(t *testing.T) {
			o := convert.CreateOptions{
				Base: tensorsOf(openCheckpoint(t, filepath.Join(diffusion, c.Base))),
			}
			alone := make(map[string][]merge.Adapter) // by component
			for i, a := range c.openAdapters(t) {
				for component, part := range peftParts(t, a.Source, o) {
					alone[component] = append(alone[component],
						merge.Adapter{Source: part, Name: a.Name, Weight: a.Weight})
					key := strings.TrimSpace(c.Adapters[i] + " " + component)
					if want, ok := written.Files[key]; ok && part.digest != want {
						t.Errorf("%s has the SHA-256 %s, want %s", key, part.digest, want)
					}
					loaded[key] = written.Files[key] != ""
				}
			}
			if len(alone) > 1 {
				several++
			}
			c.compareParts(t, alone)
		})
	}
	for key := range written.Files {
		if !loaded[key] {
			t.Errorf("%s was not written", key)
		}
	}
	if len(seen) < 50 || several < 5 {
		t.Errorf("%d cases, %d of them of several components, want 50 and 5 or more", len(seen), several)
	}
}

// compareParts merges the adapters of each component alone, as the names of a text encoder can fit
// another one, too. It compares every tensor that a merge has changed with the truth, and every
// other one with the base.
func (c diffusionCase) compareParts(t *testing.T, alone map[string][]merge.Adapter) {
	t.Helper()
	base := openCheckpoint(t, filepath.Join(diffusion, c.Base))
	want := openCheckpoint(t, filepath.Join(diffusion, c.Merged))
	var all []*checkpoint.Checkpoint
	for component, adapters := range alone {
		part := c
		if component != "" {
			part.Only = []string{component}
		}
		all = append(all, part.merge(t, adapters))
	}
	for _, name := range base.Names() {
		before := read(t, base, name)
		got, truth := before, before
		for _, merged := range all {
			if after := read(t, merged, name); !bytes.Equal(after, before) {
				got = after
			}
		}
		if _, ok := want.Lookup(name); ok {
			truth = read(t, want, name)
		}
		compareTensor(t, name, "as in the case", got, truth)
	}
}

// peftPart is an adapter in a directory of PEFT.
type peftPart struct {
	format.Source
	digest string // of the configuration and the weights
}

// peftParts writes an adapter as PEFT's directories, one for each component. The name of an only
// component is "".
func peftParts(
	t *testing.T, src format.Source, o convert.CreateOptions,
) map[string]*peftPart {
	t.Helper()
	whole, err := asPEFT(t, src, o)
	if err == nil {
		return map[string]*peftPart{"": whole}
	}
	parts := make(map[string]*peftPart)
	if !errors.Is(err, format.ErrUnsupported) ||
		!strings.Contains(fault.Hint(err), "choose one with CreateOptions.Only=") {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "the adapter has layers of "), ", and")
	for name := range strings.SplitSeq(text, ", ") {
		o.Only = []string{name}
		part, err := asPEFT(t, src, o)
		if err != nil {
			t.Fatal(err)
		}
		parts[name] = part
	}
	if len(parts) < 2 {
		t.Fatalf("%v: %d components", err, len(parts))
	}
	return parts
}

// asPEFT writes an adapter as a directory of PEFT, and opens that.
func asPEFT(t *testing.T, src format.Source, o convert.CreateOptions) (*peftPart, error) {
	t.Helper()
	var m output.Memory
	sink, err := convert.CreateTo(&m, convert.PEFT(), o)
	if err := errors.Join(err, format.Copy(t.Context(), sink, src)); err != nil {
		return nil, err
	}
	files := make(fstest.MapFS)
	for name, content := range m.Files() {
		files["a/"+name] = &fstest.MapFile{Data: content}
	}
	back, err := convert.OpenFS(t.Context(), files, "a", convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { back.Close() })
	a := &back.Manifest().Adapters[0]
	isPrefixed := func(l format.Layer) bool {
		return strings.HasPrefix(l.Module, "unet.") || strings.HasPrefix(l.Module, "text_encoder")
	}
	if a.Dialect != "peft" || slices.ContainsFunc(a.Layers, isPrefixed) {
		t.Errorf("dialect %s, layers such as %s", a.Dialect, a.Layers[0].Module)
	}
	whole := slices.Concat(m.Files()["adapter_config.json"], m.Files()["adapter_model.safetensors"])
	return &peftPart{back, fmt.Sprintf("%x", sha256.Sum256(whole))}, nil
}
