package merge_test

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
)

// disguised is an adapter whose manifest differs in every field that its content id ignores. The
// tensors are the same.
type disguised struct {
	format.Source
	manifest *format.Manifest
}

func (d disguised) Manifest() *format.Manifest { return d.manifest }

func disguise(src format.Source, release string) disguised {
	m := *src.Manifest()
	m.Provenance = format.Provenance{Source: "PEFT " + release, Tool: "another"}
	m.Metadata = map[string]string{"peft_version": release, "format": "mlx"}
	m.Notes = nil
	m.Adapters = slices.Clone(m.Adapters)
	a := &m.Adapters[0]
	a.Dialect = "another"
	a.Base = format.Base{Name: "another/base"}
	switch a.Orientation {
	case format.NxM:
		a.Orientation = format.MxN
	default:
		a.Orientation = format.NxM
	}
	return disguised{src, &m}
}

// TestNothingButTheContentDecidesBytes merges every fixture again with disguised adapters: other
// releases of the producer, other dialects, orientations and bases, with the same content id.
func TestNothingButTheContentDecidesBytes(t *testing.T) {
	compared := 0
	for _, kind := range []string{"merge", "eras"} {
		eachFixture(t, kind, 29, func(t *testing.T, dir string, c fixture) {
			adapters, err := c.openAdapters(t, dir)
			if err != nil {
				t.Fatal(err)
			}
			want := c.mergeToMemory(t, adapters)
			for _, release := range []string{"0.18.1", "0.21.0"} {
				others := slices.Clone(adapters)
				for i := range others {
					others[i].Source = disguise(others[i].Source, release)
					equalContent(t, adapters[i].Source, others[i].Source)
				}
				got := c.mergeToMemory(t, others)
				if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
					t.Fatalf("files %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
				}
				for name := range want {
					if !bytes.Equal(got[name], want[name]) {
						t.Errorf("said to be by PEFT %s: %s has other bytes", release, name)
					}
				}
				compared++
			}
		})
	}
	t.Logf("%d merges compared", compared)
}

// equalContent checks that both sources have the same content id.
func equalContent(t *testing.T, a, b format.Source) {
	t.Helper()
	ids := make([]string, 2)
	for i, src := range []format.Source{a, b} {
		var err error
		if ids[i], err = format.ContentID(context.Background(), src); err != nil {
			t.Fatal(err)
		}
	}
	if ids[0] != ids[1] {
		t.Fatalf("content ids %s and %s of one adapter", ids[0], ids[1])
	}
}

// mergeToMemory merges adapters into the base of a case.
func (c fixture) mergeToMemory(t *testing.T, adapters []merge.Adapter) map[string][]byte {
	t.Helper()
	base, err := c.openBase(t)
	if err != nil {
		t.Fatal(err)
	}
	p, err := merge.New(context.Background(), base, adapters, c.with(merge.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	out := new(output.Memory)
	if _, err := p.RunTo(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	return out.Files()
}
