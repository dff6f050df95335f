package merge_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// TestAConvertedAdapterMergesLikeItsSource converts the adapters of the cases to each dialect of
// image models that is written, and merges the new files. Every element is that of diffusers or of
// kohya. Where the names of the modules fit several architectures, the conversion is refused, and
// the base decides.
func TestAConvertedAdapterMergesLikeItsSource(t *testing.T) {
	var index struct {
		Cases []diffusionCase `json:"cases"`
	}
	if err := json.Unmarshal(file(t, filepath.Join(diffusion, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	byTables, byBase := 0, 0
	seen := make(map[string]bool)
	for _, c := range index.Cases {
		if seen[fmt.Sprint(c.Adapters)] {
			continue // on another base; the new file is the same
		}
		seen[fmt.Sprint(c.Adapters)] = true
		for _, d := range imageDialects {
			t.Run(c.Name+" as "+d.Name(), func(t *testing.T) {
				adapters, err := c.converted(t, d, convert.CreateOptions{})
				if byTables++; err != nil {
					byTables--
					byBase++
					if text := err.Error(); !errors.Is(err, format.ErrUnsupported) ||
						!strings.Contains(text, "several architectures") && !strings.Contains(text, "has no name for") ||
						!strings.Contains(fault.Hint(err), "CreateOptions.Base") {
						t.Fatal(err)
					}
					o := convert.CreateOptions{Base: tensorsOf(openCheckpoint(t, filepath.Join(diffusion, c.Base)))}
					if adapters, err = c.converted(t, d, o); err != nil {
						t.Fatal(err)
					}
				}
				c.compare(t, adapters)
			})
		}
	}
	if byTables < 50 || byBase < 10 {
		t.Errorf("%d conversions by tables and %d by bases, want 50 and 10 or more", byTables, byBase)
	}
}

// imageDialects are the dialects of image models that are written.
var imageDialects = []convert.Dialect{
	convert.Kohya(), convert.Diffusers(), convert.ComfyUI(),
}

// tensorsOf lists the tensors of a base.
func tensorsOf(c *checkpoint.Checkpoint) (all []format.Tensor) {
	for _, name := range c.Names() {
		t, _ := c.Lookup(name)
		all = append(all, format.Tensor{Name: name, DType: t.Tensor.DType, Shape: t.Tensor.Shape})
	}
	return all
}

// converted returns the adapters of a case after they were written in a dialect.
func (c diffusionCase) converted(t *testing.T, d convert.Dialect, o convert.CreateOptions) ([]merge.Adapter, error) {
	t.Helper()
	adapters := c.openAdapters(t)
	for i := range adapters {
		content, err := inMemory(t, adapters[i].Source, d, o)
		if err != nil {
			return nil, err
		}
		back, err := convert.OpenReader(t.Context(), bytes.NewReader(content), int64(len(content)), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := back.Manifest().Adapters[0].Dialect; got != d.Name() {
			t.Errorf("the new file is recognised as %s", got)
		}
		t.Cleanup(func() { back.Close() })
		adapters[i].Source = back
	}
	return adapters, nil
}

// inMemory writes an adapter in a dialect.
func inMemory(t *testing.T, src format.Source, d convert.Dialect, o convert.CreateOptions) ([]byte, error) {
	t.Helper()
	var m output.Memory
	sink, err := convert.CreateTo(&m, d, o)
	if err := errors.Join(err, format.Copy(t.Context(), sink, src)); err != nil {
		return nil, err
	}
	return m.Files()[""], nil
}

// TestDiffusersHasLoadedTheseFiles: testdata/diffusion/written.py has loaded the files with the
// digests in written.json with diffusers, and has got the merged values of the cases. The same
// bytes are written now.
func TestDiffusersHasLoadedTheseFiles(t *testing.T) {
	var index struct {
		Cases []diffusionCase `json:"cases"`
	}
	var written struct {
		Files map[string]string `json:"files"`
	}
	for name, v := range map[string]any{"index.json": &index, "written.json": &written} {
		if err := json.Unmarshal(file(t, filepath.Join(diffusion, name)), v); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[string]bool)
	for _, c := range index.Cases {
		for i, name := range c.Adapters {
			for flags, fold := range map[string]bool{"": false, " --fold-scale": true} {
				want := written.Files[name+flags]
				if want == "" || seen[name+flags] {
					continue
				}
				seen[name+flags] = true
				src, o := c.openAdapters(t)[i].Source, convert.CreateOptions{FoldScale: fold}
				content, err := inMemory(t, src, convert.Diffusers(), o)
				hasOtherDims := strings.Contains(name, "kohya-matrices") || strings.Contains(name, "kohya-4d")
				if err != nil || hasOtherDims {
					o.Base = tensorsOf(openCheckpoint(t, filepath.Join(diffusion, c.Base)))
					content, err = inMemory(t, src, convert.Diffusers(), o)
				}
				if err != nil {
					t.Errorf("%s%s: %v", name, flags, err)
				} else if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != want {
					t.Errorf("%s%s has the SHA-256 %s, want %s", name, flags, got, want)
				}
			}
		}
	}
	if len(seen) != len(written.Files) || len(seen) < 100 {
		t.Errorf("%d files of %d were written", len(seen), len(written.Files))
	}
}
