package audit_test

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/merge"
)

// defect is a wrong merge, from defects.json: edits of a right one.
type defect struct {
	given
	// Case names the case of cases.json whose claim and merge this starts from. "" starts from the
	// exact merge of what is given.
	Case    string
	from    *mergeCase
	Comment string
	Edits   []edit
	// Verdicts are the verdicts of the whole that an audit may give; nil stands for not_as_claimed.
	Verdicts []string
	// Findings are the names that an audit may give to a tensor, by patterns of its name. An audit
	// may flag no other tensor.
	Findings map[string][]string
	// Factor is the scale of the update in these tensors relative to the right one; 0 if that is no
	// part of the defect.
	Factor float64
}

// defects reads defects.json.
func defects(t *testing.T) []defect {
	t.Helper()
	var all []defect
	readJSON(t, filepath.Join(testdata, "audit/defects.json"), &all)
	cases := make(map[string]*mergeCase)
	merges := mergeCases(t)
	for i := range merges {
		cases[merges[i].Name] = &merges[i]
	}
	for i := range all {
		d := &all[i]
		if d.Verdicts == nil {
			d.Verdicts = []string{"not_as_claimed"}
		}
		if d.Case == "" {
			continue
		}
		c := cases[d.Case]
		if c == nil {
			t.Fatalf("%s: no case %q", d.Name, d.Case)
		}
		name := d.Name
		d.given, d.from = c.given, c
		d.Name = name
	}
	return all
}

// allowed returns the names that an audit may give to a tensor, nil if it may not flag it.
func (d *defect) allowed(tensor string) []string {
	for _, pattern := range slices.Sorted(maps.Keys(d.Findings)) {
		if matches(pattern, tensor) {
			return d.Findings[pattern]
		}
	}
	return nil
}

// matches reports whether a pattern, in which * stands for any characters, matches a name.
func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	if err != nil {
		panic(err)
	}
	return ok
}

// write writes the wrong merge, and returns what is claimed of it.
func (d *defect) write(t *testing.T) claim {
	t.Helper()
	m := d.right(t)
	for _, e := range d.Edits {
		e.apply(t, &d.given, m)
	}
	return d.claim(m.write(t))
}

// right returns the right merge.
func (d *defect) right(t *testing.T) *model {
	t.Helper()
	if d.from == nil {
		return d.exact(t, nil)
	}
	return d.from.build(t)
}

// edit is a step that makes a right merge wrong.
type edit struct {
	Op      string
	Tensors []string // patterns of their names
	// Adapters replaces the adapters of the claim for "merge".
	Adapters []adapterEdit
	Times    int // how often "merge" merges, each time rounding; 0 stands for once
	Options  merge.Reading
	From     string         // tensor that "add" copies
	DType    string         // for "cast"
	Rows     int            // for "pad" and "copy"
	Size     float64        // norm of the noise relative to the tensor
	Rank     int            // of the noise; 0 stands for full
	Index    int            // of the element
	Bit      int            // that "flip" flips
	Value    string         // for "set"
	Config   map[string]any // for "config"
}

// apply applies an edit to a merge.
func (e *edit) apply(t *testing.T, g *given, m *model) {
	t.Helper()
	switch e.Op {
	case "copy":
		base := g.base(t)
		m.each(t, e.Tensors, func(name string) { m.copyRows(name, base.tensors[name], e.Rows) })
	case "merge":
		e.merge(t, g, m)
	case "add":
		m.tensors[e.Tensors[0]] = m.tensors[e.From]
	case "remove":
		m.each(t, e.Tensors, func(name string) { delete(m.tensors, name) })
	case "exchange":
		a, b := e.Tensors[0], e.Tensors[1]
		m.tensors[a], m.tensors[b] = m.tensors[b], m.tensors[a]
	case "pad":
		m.each(t, e.Tensors, func(name string) { m.pad(name, e.Rows) })
	case "cast":
		m.each(t, e.Tensors, func(name string) { m.cast(t, name, e.DType) })
	case "truncate":
		m.each(t, e.Tensors, m.truncate)
	case "noise":
		m.each(t, e.Tensors, func(name string) { m.noise(name, e.Size, e.Rank) })
	case "set":
		m.each(t, e.Tensors, func(name string) { m.set(t, name, e.Index, e.Value) })
	case "flip":
		m.each(t, e.Tensors, func(name string) { m.flip(name, e.Index, e.Bit) })
	case "config":
		m.configure(t, e.Config)
	default:
		t.Fatalf("no edit %q", e.Op)
	}
}

// merge takes tensors from another merge, or all of them.
func (e *edit) merge(t *testing.T, g *given, m *model) {
	t.Helper()
	other := g.exact(t, e)
	patterns := e.Tensors
	if patterns == nil {
		patterns = []string{"*"}
	}
	other.each(t, patterns, func(name string) { m.tensors[name] = other.tensors[name] })
}
