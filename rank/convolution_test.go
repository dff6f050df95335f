package rank_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/rank"
)

// TestAUNetReachesTheErrorOfNumpy extracts a fine-tune in LDM's names from a base in those of
// diffusers, with a rank of its own for convolutions. testdata/extract/image has numpy's singular
// values and the error of kohya's factors. Half a millesimal is what the decomposition may lose.
func TestAUNetReachesTheErrorOfNumpy(t *testing.T) {
	const dir = "../testdata/extract/image"
	var truth map[string]struct {
		Rank         int
		Sigma        []float64
		SVD, Clamped float64
	}
	text, err := os.ReadFile(filepath.Join(dir, "truth.json"))
	if err == nil {
		err = json.Unmarshal(text, &truth)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "base.safetensors")
	src, report, err := extract(t, path, filepath.Join(dir, "tuned.safetensors"),
		rank.ExtractOptions{Rule: rank.FixedRank{K: 4}, ConvRank: 3})
	if err != nil {
		t.Fatal(err)
	}
	base, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	layers := src.Manifest().Adapters[0].Layers
	if len(layers) != len(truth) {
		t.Errorf("%d layers, want %d", len(layers), len(truth))
	}
	for i := range layers {
		l, r := &layers[i], &report.Layers[i]
		want, ok := truth[l.Module]
		if !ok || l.Rank != want.Rank || l.Alpha != float64(l.Rank) {
			t.Errorf("%s has rank %d and alpha %v, want %d", l.Module, l.Rank, l.Alpha, want.Rank)
			continue
		}
		var left, all float64
		for i, s := range want.Sigma {
			all += s * s
			if i >= want.Rank {
				left += s * s
			}
			if i < want.Rank && math.Abs(r.SingularValues[i]-s) > 1e-4*s {
				t.Errorf("%s: σ%d is %g, want %g", l.Module, i+1, r.SingularValues[i], s)
			}
		}
		best := math.Sqrt(left / all)
		if r.Rounded < best*(1-1e-6) || r.Rounded > best*1.001 || r.Rounded > want.SVD*1.001 {
			t.Errorf("%s: the error is %g; %g is the least, kohya's %g", l.Module, r.Rounded, best, want.SVD)
		}
		if r.Rounded >= want.Clamped {
			t.Errorf("%s: the error %g is not below %g, kohya's with a clamp", l.Module, r.Rounded, want.Clamped)
		}
		compareFactorShapes(t, src, base, l)
	}
}

// compareFactorShapes checks that the factors of a layer have the shapes of PEFT and kohya.
func compareFactorShapes(t *testing.T, src format.Source, base *checkpoint.Checkpoint, l *format.Layer) {
	t.Helper()
	ref, _ := base.Lookup(l.Module + ".weight")
	w := ref.Tensor.Shape
	a, b := append([]uint64{uint64(l.Rank)}, w[1:]...), []uint64{w[0], uint64(l.Rank)}
	for range w[2:] {
		b = append(b, 1)
	}
	tensors := src.Manifest().Tensors
	haveA, haveB := tensors[l.Roles[format.RoleA]].Shape, tensors[l.Roles[format.RoleB]].Shape
	if !slices.Equal(haveA, a) || !slices.Equal(haveB, b) {
		t.Errorf("%s: A %d and B %d, want %d and %d", l.Module, haveA, haveB, a, b)
	}
}
