package report_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// handMade is a source built by a program, unchecked by any reader. All its values are zero.
type handMade struct{ manifest *format.Manifest }

func (s *handMade) Manifest() *format.Manifest                { return s.manifest }
func (s *handMade) ReadBlobAt(p []byte, _ int, _ int64) error { clear(p); return nil }
func (s *handMade) Close() error                              { return nil }

// good returns a valid adapter with a layer of every kind for the base of
// TestHandMadeSourcesAreCheckedAtTheDoor.
func good() *format.Manifest {
	m := new(format.Manifest)
	tensor := func(shape ...uint64) int {
		m.Tensors = append(m.Tensors, format.Tensor{Name: fmt.Sprint(len(m.Tensors)), DType: dtype.F32, Shape: shape})
		return len(m.Tensors) - 1
	}
	layer := func(module string, kind format.Kind, a, b int) format.Layer {
		return format.Layer{
			Module: module, Kind: kind, Rank: 2, Alpha: 2, Scaling: format.AlphaOverR,
			Roles: map[format.Role]int{format.RoleA: a, format.RoleB: b},
		}
	}
	a := format.Adapter{Method: "lora", Layers: []format.Layer{
		layer("m.linear", format.Linear, tensor(2, 6), tensor(4, 2)),
		layer("m.embed", format.Embedding, tensor(2, 8), tensor(6, 2)),
		layer("m.conv", format.Conv, tensor(2, 3, 3, 3), tensor(5, 2, 1, 1)),
		layer("m.experts", format.Expert, tensor(6, 6), tensor(4, 6)),
	}}
	a.Layers[0].Roles[format.RoleBias] = tensor(4)
	a.Beside = []format.Beside{
		{Action: format.Replace, Target: "m.norm.weight", Tensor: tensor(6)},
		{Action: format.Rows, Target: "m.embed.weight", Tensor: tensor(2, 6), Rows: []int64{1, 3}},
	}
	a.Requires = []format.Requirement{{Feature: format.FeatureExperts, Where: "m.experts.down_proj"}, {Feature: format.FeatureConvolution, Where: "m.conv"}}
	m.Adapters = []format.Adapter{a}
	return m
}

// mutations break one thing each.
func mutations() map[string]func(m *format.Manifest) {
	all := map[string]func(m *format.Manifest){
		"no adapter":          func(m *format.Manifest) { m.Adapters = nil },
		"two adapters":        func(m *format.Manifest) { m.Adapters = append(m.Adapters, m.Adapters[0]) },
		"no tensors":          func(m *format.Manifest) { m.Tensors = nil },
		"a tensor too many":   func(m *format.Manifest) { m.Tensors = append(m.Tensors, m.Tensors[0]) },
		"an unknown method":   func(m *format.Manifest) { m.Adapters[0].Method = "x" },
		"an orientation":      func(m *format.Manifest) { m.Adapters[0].Orientation = "x" },
		"two equal names":     func(m *format.Manifest) { m.Tensors[1].Name = m.Tensors[0].Name },
		"a bias of one":       func(m *format.Manifest) { m.Tensors[8].Shape = nil },
		"rows that are none":  func(m *format.Manifest) { m.Adapters[0].Beside[1].Rows = nil },
		"a row twice":         func(m *format.Manifest) { m.Adapters[0].Beside[1].Rows = []int64{1, 1} },
		"an action":           func(m *format.Manifest) { m.Adapters[0].Beside[0].Action = "x" },
		"a replacement at -1": func(m *format.Manifest) { m.Adapters[0].Beside[0].Tensor = -1 },
	}
	for i := range good().Adapters[0].Layers {
		of := func(what string, f func(m *format.Manifest, l *format.Layer)) {
			all[fmt.Sprintf("layer %d: %s", i, what)] = func(m *format.Manifest) { f(m, &m.Adapters[0].Layers[i]) }
		}
		for _, r := range []int{0, -1, 3, 1 << 16, 1 << 17, math.MaxInt} {
			of(fmt.Sprint("rank ", r), func(_ *format.Manifest, l *format.Layer) { l.Rank = r })
		}
		of("no roles", func(_ *format.Manifest, l *format.Layer) { l.Roles = nil })
		of("an unknown kind", func(_ *format.Manifest, l *format.Layer) { l.Kind = "" })
		of("an unknown scaling", func(_ *format.Manifest, l *format.Layer) { l.Scaling = "" })
		of("alpha NaN", func(_ *format.Manifest, l *format.Layer) { l.Alpha = math.NaN() })
		of("a fixed scale of infinity", func(_ *format.Manifest, l *format.Layer) { l.Scaling, l.Fixed = format.Fixed, math.Inf(1) })
		for _, role := range []format.Role{format.RoleA, format.RoleB} {
			at := good().Adapters[0].Layers[i].Roles[role]
			for _, index := range []int{-1, 11, math.MaxInt, 0, 1} {
				if index != at {
					of(fmt.Sprint(role, " at ", index), func(_ *format.Manifest, l *format.Layer) { l.Roles[role] = index })
				}
			}
			of(fmt.Sprint("no ", role), func(_ *format.Manifest, l *format.Layer) { delete(l.Roles, role) })
			of(fmt.Sprint(role, " without a dtype"), func(m *format.Manifest, _ *format.Layer) { m.Tensors[at].DType = dtype.Invalid })
			of(fmt.Sprint(role, " of integers"), func(m *format.Manifest, _ *format.Layer) { m.Tensors[at].DType = dtype.I64 })
			for _, shape := range [][]uint64{nil, {2}, {12}, {0, 6}, {0, 2}, {6, 0}, {2, 0}, {0, 0}, {1 << 40, 1 << 40}, {5, 7}, {1, 1, 1, 1, 1, 1, 1, 1, 1}} {
				of(fmt.Sprintf("%s of shape %d", role, shape), func(m *format.Manifest, _ *format.Layer) { m.Tensors[at].Shape = shape })
			}
		}
	}
	return all
}

// TestHandMadeSourcesAreCheckedAtTheDoor hands invalid sources to every entry of the library. Each
// entry must accept the source or name its fault with a kind of bad input; no I/O error, no panic.
func TestHandMadeSourcesAreCheckedAtTheDoor(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "model.safetensors")
	rng := rand.New(rand.NewPCG(7, 8))
	testkit.Write(t, base, testkit.Encode(nil,
		testkit.Random(rng, "m.linear.weight", dtype.F32, 1, 4, 6), testkit.Random(rng, "m.linear.bias", dtype.F32, 1, 4),
		testkit.Random(rng, "m.embed.weight", dtype.F32, 1, 8, 6), testkit.Random(rng, "m.conv.weight", dtype.F32, 1, 5, 3, 3, 3),
		testkit.Random(rng, "m.experts.down_proj", dtype.F32, 1, 3, 4, 6), testkit.Random(rng, "m.norm.weight", dtype.F32, 1, 6)))
	doors := map[string]func(src format.Source) error{
		"merge.Open": func(src format.Source) error {
			p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "made", Weight: 1}}, merge.Options{})
			if err == nil {
				p.PeakBytes(2)
				err = p.Close()
			}
			return err
		},
		"rank.Spectra": func(src format.Source) error {
			_, err := rank.Spectra(t.Context(), src, 2)
			return err
		},
		"report.Describe": func(src format.Source) error {
			_, err := report.Describe(t.Context(), src, report.Options{Values: true, Spectrum: true})
			return err
		},
		"format.ContentID": func(src format.Source) error {
			_, err := format.ContentID(t.Context(), src)
			return err
		},
	}
	n := 0
	for _, d := range []convert.Dialect{convert.LoRA(), convert.PEFT()} {
		doors["convert to "+d.Name()] = func(src format.Source) error {
			n++
			sink, err := convert.Create(filepath.Join(dir, fmt.Sprintf("%d.%s", n, d)), d, convert.CreateOptions{})
			if err != nil {
				return err
			}
			return sink.Store(context.Background(), src)
		}
	}
	if err := format.Validate(good()); err != nil {
		t.Fatalf("the adapter that all others are made of: %v", err)
	}
	var f *fault.Error
	for what, mutate := range mutations() {
		m := good()
		mutate(m)
		invalid := format.Validate(m)
		for door, open := range doors {
			err := open(&handMade{m})
			if err != nil && !errors.As(err, &f) {
				t.Errorf("%s: %s = %v, want an error of a kind", what, door, err)
			}
			// A container holds everything that the specification allows, applicable or not.
			if holds := door == "format.ContentID" || door == "convert to lora"; invalid != nil && err == nil && !holds {
				t.Errorf("%s: %s took it, want %v", what, door, invalid)
			}
		}
	}
	for door, open := range doors {
		if err := open(&handMade{}); !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("%s of a source without a manifest = %v, want %v", door, err, format.ErrCorrupt)
		}
	}
}
