package convert

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
)

// TestPatternsMatchAsPythonDoes compares every key and name with what Python's re.match says (testdata/peft/regexps.py), under
// the expressions of both eras.
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
		c := &peftConfigFile{era: era015}
		if row.Era == "0.14" {
			c.era = era014
		}
		e := patternEntry{key: row.Key, value: 1}
		e.compile()
		if !e.plain && e.re[c.era.form()] == nil {
			t.Errorf("%s: the key %q cannot be evaluated", row.Era, row.Key)
			continue
		}
		for _, name := range truth.Names {
			if got, want := e.matches(c.era, name), slices.Contains(row.Matches, name); got != want {
				t.Errorf("%s: %q matches %q = %v, want %v", row.Era, row.Key, name, got, want)
			}
		}
	}
}

// TestPatternsThatCannotBeEvaluatedAreRequired: a key that Python reads in a way of its own, that is too long, or that takes for
// ever keeps the adapter from being merged; it does not hang.
func TestPatternsThatCannotBeEvaluatedAreRequired(t *testing.T) {
	for _, key := range []string{
		"(", "(?i)q_proj", "(?a)q_proj", `(?P<n>q)(k)\2`, "[a-z-[aeiou]]_proj", "(?P=n", `\N{BULLET}`, strings.Repeat("(", 600) + strings.Repeat(")", 600),
		"((a+)+)+b",
	} {
		c := &peftConfigFile{RankPattern: pattern{{key: key, value: 2}}}
		if err := c.compilePatterns(); err != nil {
			t.Errorf("compilePatterns(%q) = %v, want a requirement", key, err)
		}
		if _, m := c.rank(strings.Repeat("a", 60)); m != nil {
			t.Errorf("%q matches", key)
		}
		c.requirePatterns()
		if len(c.requires) != 1 || c.requires[0].Feature != format.FeaturePattern {
			t.Errorf("%q requires %v, want %s", key, c.requires, format.FeaturePattern)
		}
	}
}

// TestErasByConfiguration: the version where the file has it, or else the fields, which every PEFT writes all.
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

// TestRanksOfTheFactorsDecideTheEra: an adapter whose shapes only another era gives was trained under that one.
func TestRanksOfTheFactorsDecideTheEra(t *testing.T) {
	c, err := parsePEFTConfig([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":8,"rank_pattern":{"a|b":2},"alpha_pattern":{"b|a":16}}`))
	if err != nil {
		t.Fatal(err)
	}
	read := func(rankB uint64) (*format.Manifest, format.Adapter) {
		c, m := *c, new(format.Manifest)
		m.Tensors = []format.Tensor{
			{Name: "x.a.lora_A.weight", Shape: []uint64{2, 8}}, {Name: "x.a.lora_B.weight", Shape: []uint64{8, 2}},
			{Name: "x.b.lora_A.weight", Shape: []uint64{rankB, 8}}, {Name: "x.b.lora_B.weight", Shape: []uint64{8, rankB}},
		}
		p := peftReader{config: &c, tensors: m.Tensors, manifest: m}
		return m, p.adapter()
	}
	if _, a := read(2); a.Layers[0].Alpha != 16 || a.Layers[1].Alpha != 16 || len(a.Requires) > 0 {
		t.Errorf("with rank 2 for both the alphas are %v and %v (%v), want 16", a.Layers[0].Alpha, a.Layers[1].Alpha, a.Requires)
	}
	m, a := read(4)
	if a.Layers[0].Rank != 2 || a.Layers[0].Alpha != 8 || a.Layers[1].Alpha != 16 || len(a.Requires) > 0 {
		t.Errorf("with rank 4 for b the alphas are %v and %v (%v), want 8 and 16, as PEFT 0.14 has it", a.Layers[0].Alpha, a.Layers[1].Alpha, a.Requires)
	}
	if len(m.Notes) == 0 || !strings.Contains(strings.Join(m.Notes, "\n"), "the ranks of the factors") {
		t.Errorf("the notes do not say how the era is known: %q", m.Notes)
	}
}
