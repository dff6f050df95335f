package audit_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/loratool/loratool/internal/audit"
)

// TestSARIFHasARuleForEachFindingAndAResultForEachWrongTensor checks the parts of SARIF 2.1.0 that
// readers of it need. The OASIS schema was applied by hand.
func TestSARIFHasARuleForEachFindingAndAResultForEachWrongTensor(t *testing.T) {
	r := &audit.Report{Verdict: audit.NotAsClaimed, Rounding: audit.Exact, Tensors: []audit.Tensor{
		{Tensor: "a.weight", Module: "a", Verdict: audit.NotAsClaimed, Finding: audit.Twice, File: "model one.safetensors"},
		{Tensor: "b.weight", Verdict: audit.AsClaimed, Finding: audit.Untouched, File: "model one.safetensors"},
		{Tensor: "c.weight", Module: "c", Verdict: audit.Inconclusive, Finding: audit.Rounded, Text: "rounding hides it", File: "sub/two.safetensors"},
		{Tensor: "d.weight", Verdict: audit.NotAsClaimed, Finding: audit.Missing},
	}}
	text, err := r.SARIF("loratool", "1.2.3", "base", "out/merged", true, 4)
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Schema  string `json:"$schema"`
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct {
					Name, Version string
					Rules         []struct {
						ID               string
						ShortDescription struct{ Text string }
					}
				}
			}
			Invocations []struct {
				ExecutionSuccessful bool
				ExitCode            int
			}
			Results []struct {
				RuleID, Level string
				RuleIndex     int
				Message       struct{ Text string }
				Locations     []struct {
					PhysicalLocation struct{ ArtifactLocation struct{ URI string } }
					LogicalLocations []struct{ FullyQualifiedName string }
				}
				PartialFingerprints map[string]string
			}
			Properties struct{ Verdict string }
		}
	}
	if err := json.Unmarshal(text, &log); err != nil {
		t.Fatal(err)
	}
	if log.Version != "2.1.0" || log.Schema == "" || len(log.Runs) != 1 {
		t.Fatalf("version %q, schema %q, %d runs", log.Version, log.Schema, len(log.Runs))
	}
	run := log.Runs[0]
	if d := run.Tool.Driver; d.Name != "loratool" || d.Version != "1.2.3" || len(d.Rules) != len(audit.Findings())-4 {
		t.Errorf("driver %q %q with %d rules, want one for each of %d findings but four", d.Name, d.Version, len(d.Rules), len(audit.Findings()))
	}
	if i := run.Invocations; len(i) != 1 || !i[0].ExecutionSuccessful || i[0].ExitCode != 4 || run.Properties.Verdict != "not_as_claimed" {
		t.Errorf("invocations %+v, verdict %q", i, run.Properties.Verdict)
	}
	var got [][5]string
	prints := make(map[string]bool)
	for _, x := range run.Results {
		if rule := run.Tool.Driver.Rules[x.RuleIndex]; rule.ID != x.RuleID || rule.ShortDescription.Text == "" {
			t.Errorf("rule %d is %q (%q), want %q", x.RuleIndex, rule.ID, rule.ShortDescription.Text, x.RuleID)
		}
		got = append(got, [5]string{x.RuleID, x.Level, x.Message.Text, x.Locations[0].PhysicalLocation.ArtifactLocation.URI, x.Locations[0].LogicalLocations[0].FullyQualifiedName})
		prints[x.PartialFingerprints["primaryLocationLineHash"]] = true
	}
	if want := [][5]string{
		{"applied_twice", "error", "a.weight: the update was applied twice", "out/merged/model%20one.safetensors", "a.weight"},
		{"rounded", "warning", "c.weight: rounding hides it", "out/merged/sub/two.safetensors", "c.weight"},
		{"missing", "error", "d.weight: the tensor is missing", "out/merged", "d.weight"},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("results:\n%q, want\n%q", got, want)
	}
	if len(prints) != 3 {
		t.Errorf("%d fingerprints, want 3", len(prints))
	}
}

// TestTheVerdictNamesTheMistake: one mistake is in the verdict, with its extent; several are
// counted.
func TestTheVerdictNamesTheMistake(t *testing.T) {
	tensor := func(name string, f audit.Finding, text string) audit.Tensor {
		x := audit.Tensor{Tensor: name + ".weight", Module: name, Verdict: audit.NotAsClaimed, Finding: f, Text: text}
		switch f {
		case audit.Merged:
			x.Verdict = audit.AsClaimed
		case audit.Extra:
			x.Module = ""
		}
		return x
	}
	for _, x := range []struct {
		tensors []audit.Tensor
		want    string
	}{
		{[]audit.Tensor{tensor("a.0", audit.Twice, ""), tensor("a.1", audit.Twice, ""), tensor("a.2", audit.Twice, "")}, "the update was applied twice, in all 3 tensors that the adapter changes"},
		{[]audit.Tensor{tensor("a.0", audit.NotApplied, ""), tensor("a.1", audit.Merged, "")}, "the update was not applied, in 1 of the 2 tensors that the adapter changes"},
		{[]audit.Tensor{tensor("a.0", audit.NotApplied, "")}, "the update was not applied, in the only tensor that the adapter changes"},
		{[]audit.Tensor{tensor("a.0", audit.Extra, ""), tensor("a.1", audit.Merged, "")}, "neither the base nor an adapter has the tensor, in the only tensor that no adapter changes"},
		{
			[]audit.Tensor{tensor("a.0", audit.Scale, "the update has 0.666 times the scale"), tensor("a.1", audit.Scale, "the update has 0.667 times the scale")},
			"in both tensors that the adapter changes, the update has 0.666–0.667 times the scale",
		},
		{
			[]audit.Tensor{tensor("a.0", audit.Sign, ""), tensor("a.1", audit.Sign, "")},
			"the update was subtracted, in both tensors that the adapter changes; base and merged checkpoint may have been given in the wrong order",
		},
		{[]audit.Tensor{tensor("a.0", audit.Sign, ""), tensor("a.1", audit.Merged, "")}, "the update was subtracted, in 1 of the 2 tensors that the adapter changes"},
		{[]audit.Tensor{tensor("a.0", audit.Sign, ""), tensor("a.1", audit.Twice, ""), tensor("a.2", audit.Twice, "")}, "3 of 3 tensors: applied twice (2), subtracted (1)"},
		{
			[]audit.Tensor{tensor("layers.0.q", audit.Exchanged, "it has the update of layers.1.q"), tensor("layers.1.q", audit.Exchanged, "it has the update of layers.0.q")},
			"the update is that of another module, in both tensors that the adapter changes",
		},
	} {
		r := &audit.Report{Verdict: audit.NotAsClaimed, Tensors: x.tensors, Adapters: make([]audit.FittedAdapter, 1)}
		if got := r.Text("base", "merged"); got != "not as claimed: "+x.want {
			t.Errorf("Text() = %q, want not as claimed: %s", got, x.want)
		}
	}
}
