package page

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/audit"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/internal/undo"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// hostile is a name that would run a script where a page did not escape it.
const hostile = `layers.0.</script><script>hacked()</script>"><img src='x' onerror="hacked()">{{.}}`

// adapterOf is the report of an adapter whose layer i has the norm i + 1.125.
func adapterOf(modules ...string) *report.Adapter {
	r := &report.Adapter{Method: "lora", Mergeable: true}
	for i, module := range modules {
		norm := float64(i) + 1.125
		sigma := make([]float64, 16)
		for k := range sigma {
			sigma[k] = norm / math.Exp2(float64(k+1))
		}
		r.Layers = append(r.Layers, report.Layer{Module: module, M: 64, N: 32, Rank: 16, Alpha: 16, Scale: 1, DType: "F32", Spectrum: &report.Spectrum{
			SingularValues: sigma, Frobenius: norm, StableRank: 1.5, EffectiveRank: 2.25, NumericalRank: 16, Rank90: 1, Rank95: 2, Rank99: 3,
		}})
	}
	return r
}

func modulesOf(nBlocks int) (names []string) {
	for i := range nBlocks {
		for _, part := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} {
			names = append(names, fmt.Sprintf("model.layers.%d.%s", i, part))
		}
	}
	return names
}

// everyPage makes a page of each kind whose names all are name.
func everyPage(t *testing.T, name string) map[string]string {
	t.Helper()
	pages := make(map[string]string)
	head := Head{Command: "test", Title: name, Tool: "loratool " + name, Notes: []string{name}}
	add := func(kind string, text []byte, err error) {
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		pages[kind] = string(text)
	}
	a := adapterOf(name, "layers.0.other", "layers.1.other")
	a.Refusals, a.Mergeable, a.Base, a.License, a.Attached = []string{name}, false, name, name, []string{name}
	a.OnBase = &report.OnBase{Fits: true, Path: name, Warnings: []string{name}, Layers: []report.LayerOnBase{{Module: name, Relative: 0.5}}}
	a.PEFT = &report.PEFT{Version: name, TaskType: name, TargetModules: []string{name}}
	a.Unusual = []convert.UnusualFile{{Name: name, Kind: convert.UnusualCode}}
	a.Beside = []report.BesideTensor{{Target: name, Action: "replace", DType: "F32", Shape: []uint64{2}}}
	text, err := Adapter(head, a)
	add("adapter", text, err)
	text, err = Comparison(head, &rank.Comparison{
		Layers:      []rank.ComparedLayer{{Module: name, M: 2, N: 3, NormA: 1, Cosine: -0.5, Similarity: [][]float64{{0.25, 1}}}},
		OnlyA:       []string{name},
		NotCompared: []rank.NotCompared{{Module: name, Why: name}},
		Tensors:     []rank.ComparedTensor{{Tensor: name, What: "bias", Status: rank.Changed, Relative: 0.5}},
	})
	add("comparison", text, err)
	text, err = Checkpoints(head, &rank.CheckpointComparison{
		Renamed: name, Tensors: []rank.CheckpointTensor{
			{Tensor: name, Status: rank.Changed, ShapeA: []uint64{2}, DTypeA: "F32", DTypeB: "BF16", Relative: 0.5, NoSpectrum: name},
			{Tensor: name, Status: rank.Changed, ShapeA: []uint64{2, 3}, DTypeA: "F32", DTypeB: "BF16", Relative: 0.5,
				ChangeSpectrum: &rank.ChangeSpectrum{SingularValues: []float64{2, 1}, EffectiveRank: 1.6}},
		},
	})
	add("checkpoints", text, err)
	text, err = Several(head, []string{name, name + "2"}, []float64{1, 2}, [][]float64{{1, -0.5}, {-0.5, 1}}, [][]float64{{2, 0.5}, {0.5, 2}})
	add("several", text, err)
	text, err = Extraction(head, &rank.ExtractReport{
		Layers: []rank.ExtractedLayer{{Module: name, M: 2, N: 3, Rank: 1, Frobenius: 1, SingularValues: []float64{1}}},
		Beside: []rank.BesideReport{{Tensor: name, Why: name}}, Skipped: []rank.Skipped{{Tensor: name, Why: name}}, Warnings: []string{name},
	})
	add("extraction", text, err)
	text, err = Combination(head, &rank.CombineReport{
		Layers: []rank.CombinedLayer{{Module: name, M: 2, N: 3, Was: []int{2, 4}, Rank: 1, Frobenius: 1, SingularValues: []float64{1}}}, Warnings: []string{name},
	})
	add("combination", text, err)
	text, err = Merge(head, &merge.Report{
		Layers:   []merge.LayerReport{{PlannedTensor: merge.PlannedTensor{Tensor: name, DType: "BF16", Method: name}, Retention: merge.Retention{RelativeNorm: merge.Figure(math.NaN())}}},
		Replaced: []merge.PlannedTensor{{Tensor: name}}, Warnings: []string{name},
	}, &report.SurvivalMap{
		Requantised: report.Requantised{As: "fp8", In16Bits: []string{name}}, NotMeasured: []report.NotMeasured{{Tensor: name, Why: name}},
		Layers: []report.LayerSurvival{{Tensor: name, Survival: report.Survival{Norm: 1, Kept: 0.5}}},
	})
	add("merge", text, err)
	text, err = Merge(head, &merge.Report{
		Layers:   []merge.LayerReport{{PlannedTensor: merge.PlannedTensor{Tensor: name, DType: "BF16", Method: name}, Retention: merge.Retention{RelativeNorm: 0.5}}},
		TakenOut: []merge.TakenOut{{Tensor: name, Elements: 4, Merges: 1, Corrected: 1}, {Tensor: "layers.1." + name, Elements: 8, Merges: 2, MayDiffer: 2}},
		Undo:     &merge.UndoReport{Bytes: 5},
	}, nil)
	add("swap", text, err)
	expert := 3
	text, err = Change(head, &report.OnChange{
		Options: []string{name}, Layers: []report.LayerOnChange{{Module: name, Tensor: name, Expert: &expert, Change: 2, Norm: 1, Residual: 1, Cosine: -0.5}},
		Elsewhere: []string{name}, NotMeasured: []report.NotMeasured{{Module: name, Tensor: name, Why: name}}, Change: 2,
	})
	add("change", text, err)
	text, err = Checkpoint(head, &report.Checkpoint{
		ModelType: name, Tied: name, Quantization: name, DTypes: []report.DTypeCount{{DType: "F32", Tensors: 1}},
		Roles: []report.RoleCount{{Role: "mlp", Tensors: 1, Parameters: 4}}, Shards: []report.Shard{{File: name}},
		Components: []report.Component{{Name: name, Architecture: name}, {}},
		Merged:     []checkpoint.Merged{{File: name, Stamp: checkpoint.Stamp{Tool: name, Adapters: []checkpoint.StampAdapter{{Name: name}}}}},
		Cost:       &report.Cost{Rank: 8, Targets: []report.TargetCost{{Name: name}}},
		Listed:     []report.StoredTensor{{Tensor: name, DType: "F32", Shape: []uint64{2, 2}, Elements: 4, Bytes: 16, Role: "mlp", File: name}},
	})
	add("checkpoint", text, err)
	text, err = Undo(head, &report.Undo{
		Tool: name, Adapters: []undo.Adapter{{Name: name}}, Files: []report.UndoFile{{Name: name, Changed: true}},
		Tensors: []report.UndoTensor{{Tensor: name, DType: "F32", Elements: 4, Residuals: 1, Predict: "subtract"}},
	})
	add("undo", text, err)
	text, err = Audit(head, &audit.Report{
		Verdict: audit.NotAsClaimed, Rounding: audit.Exact, OtherRoundings: []audit.Rounding{audit.Float32}, Casts: name, Renamed: name,
		Adapters: []audit.FittedAdapter{{Adapter: name, Claimed: 1}}, Warnings: []string{name}, Stamps: []string{name},
		Tensors: []audit.Tensor{
			{Tensor: name, Module: name, Verdict: audit.NotAsClaimed, Finding: audit.Scale, Text: name, File: name, DType: "F32", Weights: []audit.Weight{{Value: 2}}},
			{Tensor: "layers.1." + name, Verdict: audit.AsClaimed, Finding: audit.Untouched},
		},
	})
	add("audit", text, err)
	text, err = Unclaimed(head, &audit.Unclaimed{
		Kind: audit.OneAdapter, Text: name, Rank: 1, Whole: []string{name}, Elsewhere: []string{name},
		Layers: []rank.ExtractedLayer{{Module: name, M: 2, N: 3, Rank: 1, Frobenius: 1, SingularValues: []float64{1}}}, CheckpointComparison: &rank.CheckpointComparison{},
	})
	add("unclaimed", text, err)
	text, err = Bundle(head, &report.Bundle{Adapters: []report.Member{{Name: name, Dialect: name, Method: "lora", Base: name, Layers: 2}}})
	add("bundle", text, err)
	return pages
}

// raw matches the elements whose content is no markup.
var raw = regexp.MustCompile(`(?s)(<(?:style|script)[^>]*>)(.*?)(</(?:style|script)>)`)

// elements parses a page as XML, whose rules are stricter than those of HTML, and returns its
// elements and its text.
func elements(t *testing.T, kind, page string) (all []xml.StartElement, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(strings.TrimPrefix(raw.ReplaceAllString(page, "$1$3"), "<!DOCTYPE html>")))
	var b strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all, b.String()
		}
		if err != nil {
			t.Fatalf("%s is not well-formed: %v", kind, err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			all = append(all, x.Copy())
		case xml.CharData:
			b.Write(x)
		}
	}
}

func TestPagesAreWellFormedAndNamesAreInert(t *testing.T) {
	innocent, named := everyPage(t, "layers.0.q_proj"), everyPage(t, hostile)
	for kind, page := range named {
		want, _ := elements(t, kind, innocent[kind])
		got, text := elements(t, kind, page)
		if n := len(slices.DeleteFunc(want, isBreak)); n != len(slices.DeleteFunc(got, isBreak)) {
			t.Errorf("%s: hostile names make %d elements of %d", kind, len(got), n)
		}
		for _, e := range got {
			for _, a := range e.Attr {
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "src" || a.Name.Local == "href" || a.Name.Local == "style" {
					t.Errorf("%s has <%s %s=%q>", kind, e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
		if !strings.Contains(text, hostile) {
			t.Errorf("%s does not show the name as it is", kind)
		}
		for _, script := range raw.FindAllStringSubmatch(page, -1) {
			if strings.Contains(script[2], "hacked") {
				t.Errorf("%s has a name in %s", kind, script[1])
			}
		}
	}
}

// isBreak reports whether an element is a place for a line break, whose number depends on names.
func isBreak(e xml.StartElement) bool { return e.Name.Local == "wbr" }

// TestThePolicyForbidsTheNetwork: all that a page may run are the scripts and the style that it
// holds, by their hashes.
func TestThePolicyForbidsTheNetwork(t *testing.T) {
	for kind, page := range everyPage(t, "layers.0.q_proj") {
		policy := regexp.MustCompile(`<meta http-equiv="Content-Security-Policy" content="([^"]*)"/>`).FindStringSubmatch(page)
		if policy == nil {
			t.Fatalf("%s has no policy", kind)
		}
		rules := make(map[string]string)
		for _, rule := range strings.Split(html.UnescapeString(policy[1]), "; ") {
			name, value, _ := strings.Cut(rule, " ")
			rules[name] = value
		}
		var scripts, styles []string
		for _, m := range raw.FindAllStringSubmatch(page, -1) {
			switch {
			case m[1] == "<style>":
				styles = append(styles, hash(m[2]))
			case m[1] == "<script>":
				scripts = append(scripts, hash(m[2]))
			}
		}
		want := map[string]string{
			"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'",
			"style-src": strings.Join(styles, " "), "script-src": strings.Join(scripts, " "),
		}
		if fmt.Sprint(rules) != fmt.Sprint(want) {
			t.Errorf("%s: the policy is %v, want %v", kind, rules, want)
		}
		if before := page[:strings.Index(page, policy[0])]; strings.Contains(before, "<script") || strings.Contains(before, "<style") {
			t.Errorf("%s: a script or style comes before the policy", kind)
		}
		// The address in uPlot's licence comment is the only one.
		if rest := strings.ReplaceAll(page, "https://github.com/leeoniya/uPlot", ""); regexp.MustCompile(`(?i)(https?|wss?)://`).MatchString(rest) {
			t.Errorf("%s has an address", kind)
		}
		if !Is([]byte(page)[:1<<12]) {
			t.Errorf("%s is not recognised as a page", kind)
		}
	}
}

func TestFourHundredLayersFitInAPage(t *testing.T) {
	r := adapterOf(modulesOf(58)...)
	text, err := Adapter(Head{Command: "inspect", Title: "adapter", Tool: "loratool"}, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 450_000 {
		t.Errorf("the page of %d layers has %d bytes, want at most 450,000", len(r.Layers), len(text))
	}
	all, _ := elements(t, "the page", string(text))
	cells := 0
	for _, e := range all {
		if e.Name.Local == "td" {
			cells++
		}
	}
	if want := len(r.Layers) * (2 + 14); cells != want {
		t.Errorf("the page has %d cells, want %d: two maps, and 14 columns", cells, want)
	}
	for i, l := range r.Layers {
		if norm := fmt.Sprintf("<td>%.1f</td>", l.Frobenius); !bytes.Contains(text, []byte(norm)) {
			t.Errorf("the page lacks %s of layer %d", norm, i)
		}
		if first := fmt.Sprintf("[%.4g,", l.SingularValues[0]); !bytes.Contains(text, []byte(first)) {
			t.Errorf("the page lacks the singular value %s of layer %d", first, i)
		}
	}
}

func TestABaseAddsItsFigures(t *testing.T) {
	r := adapterOf("layers.0.q", "layers.1.q", "layers.2.experts")
	own, intruders := 0.25, 7
	r.OnBase = &report.OnBase{Fits: true, Path: "the base", Layers: []report.LayerOnBase{
		{Module: "layers.0.q", Relative: 0.0625, Norm: 2, Own: &own, Intruders: &intruders, Amplification: 21.5, RandomAmplification: 1.25},
		{Module: "layers.2.experts", Relative: 0.1}, {Module: "layers.2.experts", Relative: 0.2}, // two tensors
	}}
	text, err := Adapter(Head{Command: "inspect", Title: "adapter"}, r)
	if err != nil {
		t.Fatal(err)
	}
	for cell, want := range map[string]int{">0.0625</td>": 1, ">0.06250</td>": 1, ">21.50</td>": 1, ">21.5</td>": 1, ">1.250</td>": 1, "<td>8</td>": 1, "<td>7</td>": 1, ">0.1": 0, ">0.2": 0} {
		if n := bytes.Count(text, []byte(cell)); n != want {
			t.Errorf("the page has %q %d times, want %d", cell, n, want)
		}
	}
	r.OnBase.Requantised = &report.Requantised{As: "nf4", Kept: 0.75, Error: 1.5, In16Bits: []string{"layers.0.q.weight"}, KeptWith: 0.97}
	r.OnBase.Layers[0].Requantised = &report.Survival{Norm: 2, Kept: 0.8125, Error: 1.375}
	if text, err = Adapter(Head{Command: "inspect", Title: "adapter"}, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Kept as NF4", ">0.8125</td>", ">1.375</td>", "layers.0.q.weight"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
	r.OnBase = &report.OnBase{Path: "the base", Refusal: "it has another width"}
	if text, err = Adapter(Head{Command: "inspect", Title: "adapter"}, r); err != nil {
		t.Fatal(err)
	}
	if want := `<p class="verdict bad">merge refuses it on the base</p>`; !bytes.Contains(text, []byte(want)) || !bytes.Contains(text, []byte("it has another width")) {
		t.Errorf("the page lacks %s, or the refusal", want)
	}
}

// TestAMergeShowsWhatAQuantisationLeaves: the layers of a tensor count by their squares.
func TestAMergeShowsWhatAQuantisationLeaves(t *testing.T) {
	r := &merge.Report{}
	for _, name := range []string{"layers.0.experts", "layers.1.experts", "layers.2.q"} {
		r.Layers = append(r.Layers, merge.LayerReport{PlannedTensor: merge.PlannedTensor{Tensor: name}})
	}
	text, err := Merge(Head{Command: "merge", Title: "out"}, r, &report.SurvivalMap{
		Requantised: report.Requantised{As: "fp8", Kept: 0.4375, Error: 0.625, In16Bits: []string{"layers.1.experts"}, KeptWith: 0.96875},
		Layers: []report.LayerSurvival{
			{Tensor: "layers.0.experts", Survival: report.Survival{Norm: 1, Kept: 0.5, Error: 1}},
			{Tensor: "layers.0.experts", Survival: report.Survival{Norm: 3, Kept: 0.25, Error: 2}},
			{Tensor: "layers.1.experts", Survival: report.Survival{Norm: 0, Kept: merge.Figure(math.NaN())}},
		},
		NotMeasured: []report.NotMeasured{{Tensor: "layers.2.q", Why: "it is DoRA"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Kept as FP8", "0.4375", "0.625", ">0.275</td>", ">1.924</td>", "so that 0.9688 of ΔW is kept", "layers.2.q: it is DoRA"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestPagesOfNothing(t *testing.T) {
	text, err := Adapter(Head{Command: "inspect", Title: "adapter"}, &report.Adapter{})
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := elements(t, "the page", string(text)); slices.ContainsFunc(all, func(e xml.StartElement) bool { return e.Name.Local == "table" }) {
		t.Error("an adapter without layers has a table")
	}
}

func TestNumbersAlign(t *testing.T) {
	for _, x := range []struct {
		values []float64
		want   string
	}{
		{[]float64{1, 16, 2}, "1 16 2"},
		{[]float64{13.95, 0.5, 0}, "13.95 0.50 0"},
		{[]float64{0.25, 0.0101, -0.5}, "0.2500 0.0101 -0.5000"},
		{[]float64{13.95, 1e-7, math.NaN()}, "13.95 1.00e-07 "},
		{[]float64{2.5e-5, 1e-5}, "2.50e-05 1.00e-05"},
		{[]float64{2.5e9}, "2500000000"},
		{[]float64{0}, "0"},
		{nil, ""},
	} {
		format := formatOf(x.values, 4)
		var got []string
		for _, v := range x.values {
			got = append(got, format(v))
		}
		if text := strings.Join(got, " "); text != x.want {
			t.Errorf("formatOf(%v) = %q, want %q", x.values, text, x.want)
		}
	}
}

func TestLayersHaveTheirPlaces(t *testing.T) {
	for _, x := range []struct {
		names   []string
		rows    string
		columns string
		corner  string
	}{
		{[]string{"model.layers.10.mlp.up", "model.layers.9.mlp.up", "model.layers.9.mlp.down"}, "9 10", "up down", "model.layers.*"},
		{[]string{"b.0.ff.net.0.proj", "b.0.to_out.0", "b.1.to_out.0"}, "0 1", "ff.net.0.proj to_out.0", "b.*"},
		{[]string{"l.0.experts.0.up", "l.0.experts.0.down", "l.0.q", "l.0.k"}, "0 0.experts.0", "up down q k", "l.*"},
		{[]string{"te_layers_0_q_proj", "te_layers_1_q_proj", "te_layers_1_k_proj"}, "0 1", "q_proj k_proj", "te_layers_*"},
		{[]string{"layers.0.q.weight", "layers.1.k.weight"}, "0 1", "q k", "layers.*"},
		{[]string{"layers.0.q.weight", "layers.1.k.bias"}, "0 1", "q.weight k.bias", "layers.*"},
		{[]string{"lm_head", "embed"}, "outside", "lm_head embed", "module"},
		{[]string{"layers.0.q", "layers.1.q", "head"}, "outside 0 1", "q head", "layers.*"},
	} {
		g := newGrid(x.names)
		if g == nil {
			t.Errorf("newGrid(%q) = nil", x.names)
			continue
		}
		if rows, columns := strings.Join(g.rows, " "), strings.Join(g.columns, " "); rows != x.rows || columns != x.columns || g.corner != x.corner {
			t.Errorf("newGrid(%q) has the rows %q, columns %q and corner %q; want %q, %q and %q", x.names, rows, columns, g.corner, x.rows, x.columns, x.corner)
		}
		seen := make(map[int]bool)
		for _, row := range g.cells {
			for _, i := range row {
				if i >= 0 {
					seen[i] = true
				}
			}
		}
		if len(seen) != len(x.names) {
			t.Errorf("newGrid(%q) places %d layers", x.names, len(seen))
		}
	}
}

func TestShades(t *testing.T) {
	for _, x := range []struct {
		values []float64
		want   string
	}{
		{[]float64{1, 2, 3}, "h0 h5 h9"},
		{[]float64{0.01, 0.1, 1}, "h0 h5 h9"}, // logarithmic
		{[]float64{-1, 0, 1}, "m9 h0 h9"},
		{[]float64{-0.5, 0.01, 1}, "m5 h0 h9"},
		{[]float64{4, 4}, "h3 h3"},
		{[]float64{1, 1.00001}, "h3 h3"}, // the cells have three digits
	} {
		s := newShades(x.values)
		var got []string
		for _, v := range x.values {
			got = append(got, s.class(v))
		}
		if text := strings.Join(got, " "); text != x.want {
			t.Errorf("shades of %v are %q, want %q", x.values, text, x.want)
		}
	}
	if s := newShades([]float64{math.NaN()}); s != nil {
		t.Errorf("newShades(NaN) = %v, want nil", s)
	}
}
