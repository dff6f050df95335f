package rank_test

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// TestOptionsOutsideOfTheirRangeAreRefused: before any file is read, with the value and the range.
func TestOptionsOutsideOfTheirRangeAreRefused(t *testing.T) {
	one := rank.FixedRank{K: 1}
	for _, c := range []struct {
		want    string
		options rank.ExtractOptions
	}{
		{"ExtractOptions: set either Rule or Budget",
			rank.ExtractOptions{}},
		{"ExtractOptions: set either Rule or Budget",
			rank.ExtractOptions{Rule: one, Budget: 1}},
		{"ExtractOptions: set at most one of Path and Output",
			rank.ExtractOptions{Rule: one, Path: "out.lora", Output: new(output.Memory)}},
		{"ExtractOptions.Budget is -1, want a positive number of bytes",
			rank.ExtractOptions{Budget: -1}},
		{"ExtractOptions.MaxRank is -1, want at least 1, or 0 for 64",
			rank.ExtractOptions{Budget: 1, MaxRank: -1}},
		{"ExtractOptions.DType is I8, want F32, F16 or BF16, or 0 for F32",
			rank.ExtractOptions{Rule: one, DType: dtype.I8}},
		{"ExtractOptions.DType is F64, want F32, F16 or BF16, or 0 for F32",
			rank.ExtractOptions{Rule: one, DType: dtype.F64}},
		{"FixedRank.K is -1, want at least 1",
			rank.ExtractOptions{Rule: rank.FixedRank{K: -1}}},
		{"FixedRank.K is 0, want at least 1",
			rank.ExtractOptions{Rule: rank.FixedRank{}}},
		{"EnergyShare.Share is 95, want more than 0 and at most 1",
			rank.ExtractOptions{Rule: rank.EnergyShare{Share: 95}}},
		{"EnergyShare.Share is 0, want more than 0 and at most 1",
			rank.ExtractOptions{Rule: &rank.EnergyShare{}}},
		{"EnergyShare.Max is -2, want at least 1, or 0 for no limit",
			rank.ExtractOptions{Rule: rank.EnergyShare{Share: 1, Max: -2}}},
		{"the relative error of MaxError is NaN, want more than 0 and less than 1",
			rank.ExtractOptions{Rule: rank.MaxError(math.NaN(), 0)}},
		{"the relative error of MaxError is 1, want more than 0 and less than 1",
			rank.ExtractOptions{Rule: rank.MaxError(1, 0)}},
		{"the maxRank of MaxError is -3, want at least 1, or 0 for no limit",
			rank.ExtractOptions{Rule: rank.MaxError(0.1, -3)}},
		{"NoiseFloor.Sigma is -1, want a finite number of at least 0",
			rank.ExtractOptions{Rule: rank.NoiseFloor{Sigma: -1}}},
		{"NoiseFloor.Max is -1, want at least 1, or 0 for no limit",
			rank.ExtractOptions{Rule: rank.NoiseFloor{Max: -1}}},
		{"the tolerance of the SVD is -1, want a positive number, or 0 for 0.0001",
			rank.ExtractOptions{Rule: one, SVD: rank.Options{Tolerance: -1}}},
		{"ExtractOptions.ConvRank is -1, want at least 1, or 0 to let Rule choose",
			rank.ExtractOptions{Rule: one, ConvRank: -1}},
		{"ExtractOptions.ConvRank is 2, but a Budget chooses all ranks",
			rank.ExtractOptions{Budget: 1, ConvRank: 2}},
		{"ExtractOptions.MaxRank is 4, but only a Budget uses it: a rule has a maximum of its own",
			rank.ExtractOptions{Rule: one, MaxRank: 4}},
	} {
		w := testkit.Values("w.weight", dtype.F32, []uint64{2, 2}, 1, 2, 3, 4)
		base, tuned := pairOf(t, "", []testkit.Tensor{w}, []testkit.Tensor{w})
		e, err := rank.OpenExtraction(t.Context(), base, tuned, c.options)
		if err == nil {
			e.Close()
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("OpenExtraction(%+v) = %v, want %s", c.options, err, c.want)
		}
	}
}

// TestTruncatedSVDRefusesARuleOutsideOfItsRange: it takes the same rules as an extraction.
func TestTruncatedSVDRefusesARuleOutsideOfItsRange(t *testing.T) {
	op := &rank.Dense{M: 2, N: 2, Data: []float32{1, 2, 3, 4}}
	for _, c := range []struct {
		rule    rank.Rule
		options rank.Options
	}{
		{rank.FixedRank{K: -1}, rank.Options{}},
		{rank.EnergyShare{Share: 95}, rank.Options{}},
		{rank.FixedRank{K: 1}, rank.Options{Tolerance: math.NaN()}},
	} {
		if d, err := rank.TruncatedSVD(t.Context(), op, 30, c.rule, c.options); err == nil {
			t.Errorf("TruncatedSVD(%+v, %+v) = rank %d, want an error", c.rule, c.options, d.K)
		}
	}
}

// TestExtractionWarnsBeforeItRuns: the headers say that the tuned checkpoint was given as the base.
// The report repeats the warning.
func TestExtractionWarnsBeforeItRuns(t *testing.T) {
	dir := t.TempDir()
	plain, merged := filepath.Join(dir, "plain.safetensors"), filepath.Join(dir, "merged.safetensors")
	stamp := map[string]string{"loratool.merge.1": `{"tool":"t","adapters":[{"name":"a","content":"c","weight":1}]}`}
	testkit.Write(t, plain, testkit.Encode(nil, testkit.Values("a.weight", dtype.F32, []uint64{1, 1}, 1)))
	testkit.Write(t, merged, testkit.Encode(stamp, testkit.Values("a.weight", dtype.F32, []uint64{1, 1}, 2)))
	for _, c := range []struct {
		base, tuned string
		want        []string
	}{
		{plain, merged, nil},
		{merged, plain, []string{"the base is the output of a merge and the tuned checkpoint is not; " +
			"if you swapped them, the adapter is the negative of the one that you want"}},
	} {
		e, err := rank.OpenExtraction(t.Context(), c.base, c.tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		src, report, err := e.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		src.Close()
		if got := e.Warnings(); !slices.Equal(got, c.want) {
			t.Errorf("base %s: Warnings() = %q, want %q", filepath.Base(c.base), got, c.want)
		}
		for _, w := range c.want {
			if !slices.Contains(report.Warnings, w) {
				t.Errorf("base %s: the report warns of %q, not of %q", filepath.Base(c.base), report.Warnings, w)
			}
		}
	}
}
