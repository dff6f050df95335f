package audit_test

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/merge"
)

// testdata is the directory that paths of cases and defects start from.
const testdata = "../../testdata"

// claim is what an audit is asked: whether Merged is Base with the adapters.
type claim struct {
	Base, Merged string
	Adapters     []string
	Weights      []float64
	Reading      merge.Reading
}

// given is the part of cases and defects that says what is claimed, by paths below testdata.
type given struct {
	Name, Base string
	Adapters   []string
	Weights    []float64 // nil stands for 1 each
	Options    struct {
		merge.Reading
		GrowVocabulary bool
	}
}

// mergeCase is a merge of another tool, from cases.json.
type mergeCase struct {
	given
	Merged string // the tensors that differ from the base
	Cast   string // dtype of the whole merge; "" is the base's
	Config map[string]any
	// Verdict is as_claimed, or not_as_claimed for a tool's own mistake, whose name is in Defect.
	Verdict, Defect string
	Rounding        []string // the ways to round that explain all tensors
	Tensors         map[string]struct {
		Elements int
		Rounding []string
		Differ   map[string]int // by way to round, the elements that it gets wrong
	}
}

// mergeCases reads cases.json.
func mergeCases(t *testing.T) []mergeCase {
	t.Helper()
	var all struct{ Cases []mergeCase }
	readJSON(t, filepath.Join(testdata, "audit/cases.json"), &all)
	if len(all.Cases) < 100 {
		t.Fatalf("%d cases, want 100 at least", len(all.Cases))
	}
	return all.Cases
}

// peftCases reads the cases of testdata/peft, which have no merge of another tool but loratool's
// own.
func peftCases(t *testing.T) (all []given) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(testdata, "peft/merge/*"))
	if err != nil || len(dirs) < 100 {
		t.Fatalf("%d cases of PEFT, want 100 at least: %v", len(dirs), err)
	}
	for _, dir := range dirs {
		g := given{Name: filepath.Base(dir)}
		readJSON(t, filepath.Join(dir, "case.json"), &g)
		g.Base = "peft/bases/" + g.Base
		for i, a := range g.Adapters {
			g.Adapters[i] = "peft/merge/" + g.Name + "/" + a
		}
		all = append(all, g)
	}
	return all
}

// write writes the merge, and returns what is claimed of it.
func (c *mergeCase) write(t *testing.T) claim {
	t.Helper()
	m := c.build(t)
	return c.claim(m.write(t))
}

// build returns the merge: the base, cast, with the tensors that differ.
func (c *mergeCase) build(t *testing.T) *model {
	t.Helper()
	m := c.base(t)
	if c.Cast != "" {
		for name := range m.tensors {
			m.cast(t, name, c.Cast)
		}
	}
	maps.Copy(m.tensors, readTensors(t, filepath.Join(testdata, c.Merged)))
	m.configure(t, c.Config)
	return m
}

func (g *given) claim(merged string) claim {
	c := claim{
		Base: filepath.Join(testdata, g.Base), Merged: merged, Weights: g.weights(),
		Reading: g.Options.Reading,
	}
	for _, a := range g.Adapters {
		c.Adapters = append(c.Adapters, filepath.Join(testdata, a))
	}
	return c
}

func (g *given) weights() []float64 {
	if g.Weights != nil {
		return g.Weights
	}
	ones := make([]float64, len(g.Adapters))
	for i := range ones {
		ones[i] = 1
	}
	return ones
}

func (g *given) base(t *testing.T) *model {
	t.Helper()
	return readModel(t, filepath.Join(testdata, g.Base))
}
