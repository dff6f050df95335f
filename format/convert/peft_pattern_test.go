package convert

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/pyre"
)

// TestPatternsMatchAsPythonDoes compares every key and name with the result of Python's re.match
// (testdata/peft/regexps.py), for the expressions of both eras.
func TestPatternsMatchAsPythonDoes(t *testing.T) {
	text, err := os.ReadFile("../../testdata/peft/regexps.json")
	if err != nil {
		t.Fatal(err)
	}
	var truth struct {
		Names []string
		Table []struct {
			Era, Key string
			Matches  []string
		}
	}
	if err := json.Unmarshal(text, &truth); err != nil || len(truth.Table) < 70 {
		t.Fatalf("%d keys, %v", len(truth.Table), err)
	}
	for _, row := range truth.Table {
		ps := &patterns{era: era015, budget: pyre.NewBudget(context.Background(), patternSteps)}
		if row.Era == "0.14" {
			ps.era = era014
		}
		for _, name := range truth.Names {
			m, err := ps.matcher(ps.era, row.Key)
			if err != nil {
				t.Errorf("%s: the key %q cannot be evaluated: %v", row.Era, row.Key, err)
				break
			}
			got, err := m.matches(name)
			if want := slices.Contains(row.Matches, name); got != want || err != nil {
				t.Errorf("%s: %q matches %q = %v, %v, want %v", row.Era, row.Key, name, got, err, want)
			}
		}
	}
}

// TestGlobsMatchAsTheEngineDoes: keys that need no engine give the same results as the engine.
func TestGlobsMatchAsTheEngineDoes(t *testing.T) {
	keys := []string{"", ".", "..", ".*", ".*.*", "a", ".a", "a.", `a\.b`, `\.a`, ".*a", "a.*", "a.*b", ".*a.*b.*", "a.b.*", `.*\.b`, `a.*\.b`, "a.*a", "ab.*ba", "b-_1"}
	names := []string{"", ".", "..", "a", "b", "a.b", "ab", "a.a", "aa", ".a", "a.", "x.a", "x.a.b", "aba", "abba", "x.ab.ba", "axb", "x.axb", "a.x.b", "b-_1", "x.b-_1",
		"\u00e9", "a\u00e9b", "a.\u00e9", "a\n", "a\nb", "x.a\n"}
	ps := &patterns{budget: pyre.NewBudget(context.Background(), patternSteps)}
	for _, key := range keys {
		for _, era := range []patternEra{era015, era014} {
			m, err := ps.matcher(era, key)
			if err != nil || m.glob == nil {
				t.Errorf("matcher(%q) = %v, %v, want a glob", key, m, err)
				continue
			}
			engine := &matcher{era: era, key: key, steps: ps.budget}
			for _, name := range names {
				got, err1 := m.matches(name)
				want, err2 := engine.matches(name)
				if got != want || err1 != nil || err2 != nil {
					t.Errorf("%v: %q matches %q = %v, %v, want %v, %v", era, key, name, got, err1, want, err2)
				}
			}
		}
	}
}

// TestPatternsThatCannotBeEvaluatedAreRequired: a key that Python rejects, that is too long, or
// that takes too many steps prevents merging, and does not hang.
func TestPatternsThatCannotBeEvaluatedAreRequired(t *testing.T) {
	for _, key := range []string{
		"(", "(?i)q_proj", "(?a)q_proj", "(?P=n", "a**", "[b-a]", `\q`, `\N{BULLET}`, strings.Repeat("(", 600) + strings.Repeat(")", 600),
		strings.Repeat("a", maxPatternKeyBytes+1), "((a+)+)+b",
	} {
		c := &peftConfigFile{patterns: patterns{rank: pattern{{key: key, value: 2}}, budget: pyre.NewBudget(context.Background(), 1e6)}}
		if _, m := c.rank(strings.Repeat("a", 60)); m != nil {
			t.Errorf("%q matches", key)
		}
		p := peftReader{config: c, collector: collector{manifest: new(format.Manifest)}}
		p.requirePatterns()
		if len(p.out.Requires) != 1 || p.out.Requires[0].Feature != format.FeaturePattern || len(p.manifest.Notes) != 1 {
			t.Errorf("%q requires %v with the notes %q, want %s and a note", key, p.out.Requires, p.manifest.Notes, format.FeaturePattern)
		}
	}
}

// TestOnlyKeysThatPEFTComesToAreRequired: PEFT stops at the first key that matches, so it never
// compiles the keys after it.
func TestOnlyKeysThatPEFTComesToAreRequired(t *testing.T) {
	c := &peftConfigFile{patterns: patterns{rank: pattern{{"q_proj", 2}, {"(", 3}}, budget: pyre.NewBudget(context.Background(), patternSteps)}}
	if rank, m := c.rank("x.q_proj"); rank != 2 || m == nil || c.patterns.incomplete(era015) {
		t.Errorf("rank = %d by %v, want 2 by the first key and no failure", rank, m)
	}
	if c.rank("x.k_proj"); !c.patterns.incomplete(era015) {
		t.Error("the second key is not a failure where PEFT comes to it")
	}
}

// TestTheBudgetIsForAllKeysTogether: one key can spend the steps of the others, and then the search
// ends.
func TestTheBudgetIsForAllKeysTogether(t *testing.T) {
	c := &peftConfigFile{patterns: patterns{
		budget: pyre.NewBudget(context.Background(), 10_000), modules: []string{strings.Repeat("a", 60), "x.b"},
		alpha: pattern{{"((a+)+)+b", 2}, {"(b)", 3}},
	}}
	if alpha, m := c.alpha("x.b"); m != nil || alpha != defaultAlpha {
		t.Errorf("alpha = %v by %v, want the default", alpha, m)
	}
	if !c.patterns.incomplete(era015) || c.patterns.budget.Left() != 0 {
		t.Errorf("%d steps are left, want 0", c.patterns.budget.Left())
	}
}

// TestRepeatedKeysOfPatterns: a Python dict keeps the first place and the last value.
func TestRepeatedKeysOfPatterns(t *testing.T) {
	var p pattern
	if err := json.Unmarshal([]byte(`{"a":1,"b":2,"a":3}`), &p); err != nil || !slices.Equal(p, pattern{{"a", 3}, {"b", 2}}) {
		t.Errorf("the pattern is %v, %v, want a: 3 before b: 2", p, err)
	}
	for _, text := range []string{`{"a":null}`, `{"a":"1"}`, `{"a":true}`, `[]`} {
		if err := json.Unmarshal([]byte(text), &p); err == nil {
			t.Errorf("Unmarshal(%s) = nil, want an error", text)
		}
	}
}

// TestErasByConfiguration: the version decides if the file has it, and otherwise the fields, since
// PEFT writes every field it knows.
func TestErasByConfiguration(t *testing.T) {
	old := `"auto_mapping":null,"layers_pattern":null,"layers_to_transform":null,"revision":null,"init_lora_weights":true`
	for config, want := range map[string]patternEra{
		`"peft_version":"0.13.2"`:                   era006,
		`"peft_version":"0.14.1.dev0"`:              era014,
		`"peft_version":"0.18.0","eva_config":null`: era015,
		`"peft_version":"1.0"`:                      era015,
		`"peft_version":"?",` + old:                 era006,
		`"r":8`:                                     era015,
		old:                                         era006,
		old + `,"use_dora":false,"runtime_config":null`:         era006,
		old + `,"lora_bias":false,"exclude_modules":null`:       era014,
		old + `,"lora_bias":false,"corda_config":null`:          era015,
		`"lora_bias":false`:                                     era014,
		`"auto_mapping":null,"layers_pattern":null,"lora_r":11`: era015,
	} {
		c, err := parsePEFTConfig([]byte(`{"peft_type":"LORA",` + config + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if got, evidence, _ := c.eraByConfig(); got != want || evidence == "" {
			t.Errorf("eraByConfig(%s) = %v (%s), want %v", config, got, evidence, want)
		}
	}
}

// TestRanksOfTheFactorsDecideTheEra: if only another era gives the shapes of the factors, the
// adapter was trained in that era.
func TestRanksOfTheFactorsDecideTheEra(t *testing.T) {
	c, err := parsePEFTConfig([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":8,"rank_pattern":{"a|b":2},"alpha_pattern":{"b|a":16}}`))
	if err != nil {
		t.Fatal(err)
	}
	read := func(rankB uint64) (*format.Manifest, format.Adapter) {
		c, m := *c, new(format.Manifest)
		c.patterns.budget = pyre.NewBudget(context.Background(), patternSteps)
		m.Tensors = []format.Tensor{
			{Name: "x.a.lora_A.weight", Shape: []uint64{2, 8}}, {Name: "x.a.lora_B.weight", Shape: []uint64{8, 2}},
			{Name: "x.b.lora_A.weight", Shape: []uint64{rankB, 8}}, {Name: "x.b.lora_B.weight", Shape: []uint64{8, rankB}},
		}
		p := peftReader{config: &c, collector: collector{tensors: m.Tensors, manifest: m}}
		return m, p.adapter(t.Context())
	}
	if _, a := read(2); a.Layers[0].Alpha != 16 || a.Layers[1].Alpha != 16 || len(a.Requires) > 0 {
		t.Errorf("with rank 2 for both the alphas are %v and %v (%v), want 16", a.Layers[0].Alpha, a.Layers[1].Alpha, a.Requires)
	}
	m, a := read(4)
	if a.Layers[0].Rank != 2 || a.Layers[0].Alpha != 8 || a.Layers[1].Alpha != 16 || len(a.Requires) > 0 {
		t.Errorf("with rank 4 for b the alphas are %v and %v (%v), want 8 and 16, as PEFT 0.14 has it", a.Layers[0].Alpha, a.Layers[1].Alpha, a.Requires)
	}
	if len(m.Notes) == 0 || !strings.Contains(strings.Join(m.Notes, "\n"), "the factors have the ranks") {
		t.Errorf("the notes do not say how the era is known: %q", m.Notes)
	}
}
