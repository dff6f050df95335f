package resolve

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// divided is a layer of a language model whose module the base divides in another way: a projection
// that the base fuses with others in one weight, or a fused module that the base has apart.
type divided struct {
	*resolver
	layer *format.Layer
	at    *naming.Divided
}

func (d *divided) wants() []string { return d.at.Weights() }

func (d *divided) add() error {
	l := d.layer
	x, a, b, err := d.term(l)
	if err != nil {
		return err
	}
	if nOperands(l) > 2 {
		return fault.New(fault.Unsupported, "%q has DoRA or a bias beside lora_A and lora_B, but the base has %s",
			l.Module, d.instead()).WithHint("merge into a checkpoint of the model that has a weight for this module alone")
	}
	if d.isInPairs(l) {
		return fault.New(fault.Unsupported, "%q has the rows of each attention head in the order of llama.cpp, "+
			"and the base has %s", l.Module, d.instead())
	}
	names := d.at.Weights()
	if d.at.Part >= 0 {
		return d.addPart(x, a, b, names[0])
	}
	var rows []uint64
	total := uint64(0)
	for _, name := range names {
		shape := d.tensor(name).Shape
		if len(shape) != 2 || shape[1] != a.Tensor().Shape[1] {
			return d.misfit("the base's %q has shape %d", name, shape)
		}
		rows, total = append(rows, shape[0]), total+shape[0]
	}
	if total != b.Tensor().Shape[0] {
		return d.misfit("the base's %s have %d rows together", strings.Join(names, ", "), total)
	}
	runs, err := d.runs(rows)
	if err != nil {
		return err
	}
	for i, name := range names {
		c, err := d.change(name, false)
		if err != nil {
			return err
		}
		left := wholeB(b, l.Rank)
		if runs[i].Takes = true; runs[i].Step == int(total) {
			left = left.part(runs[i].From, runs[i].Size) // one run
		} else {
			left.Runs = runs[i]
		}
		c.add(x, left, WholeA(a, l.Rank), false)
	}
	d.notes.of(l.Module, "the base has the projections of a fused module apart; each gets its rows of lora_B")
	return nil
}

// addPart adds the update of one projection to the fused weight.
func (d *divided) addPart(x Term, a, b Blob, name string) error {
	shape, n, m := d.tensor(name).Shape, a.Tensor().Shape[1], b.Tensor().Shape[0]
	widths := d.base.Config.Widths
	// Conv1D stores the weight transposed.
	transposed := naming.IsConv1DModel(widths.ModelType) && naming.IsConv1DName(naming.Leaf(d.at.Fused))
	if len(shape) == 2 && transposed {
		shape = []uint64{shape[1], shape[0]}
	}
	if len(shape) != 2 || shape[1] != n {
		return d.misfit("the base's %q, which it is part of, has shape %d", name, d.tensor(name).Shape)
	}
	rows, missing := d.at.Rows(shape[0], widths)
	if missing != "" {
		if own := d.rowsOfAll(); own != nil {
			rows, missing = own, ""
		}
	}
	switch {
	case missing != "":
		return d.unknown(missing)
	case rows == nil || sum(rows) != shape[0]:
		return d.misfit("the %d rows of the base's %q do not divide so", shape[0], name)
	case rows[d.at.Part] != m:
		return d.misfit("its part is %d of the %d rows of the base's %q", rows[d.at.Part], shape[0], name)
	}
	runs, err := d.runs(rows)
	if err != nil {
		return err
	}
	c, err := d.change(name, false)
	if err != nil {
		return err
	}
	left, own := wholeB(b, d.layer.Rank), runs[d.at.Part]
	if own.Step == int(shape[0]) {
		left = left.to(own.From) // one run
	} else {
		left.Runs = own
	}
	c.add(x, left, WholeA(a, d.layer.Rank), transposed)
	d.notes.of(d.layer.Module, "the base fuses a projection of the adapter with others; it gets its rows of the weight")
	return nil
}

// rowsOfAll returns the rows of all parts if the adapter has layers for all of them, else nil.
func (d *divided) rowsOfAll() (rows []uint64) {
	for _, p := range d.at.Parts {
		i := slices.IndexFunc(d.model.Layers, func(l format.Layer) bool {
			return l.Kind == format.Linear && p.Module != "" && l.Module == d.at.Around+p.Module
		})
		if i < 0 {
			return nil
		}
		_, m := d.factorShape(&d.model.Layers[i])
		rows = append(rows, m)
	}
	return rows
}

func sum(rows []uint64) (total uint64) {
	for _, n := range rows {
		total += n
	}
	return total
}

// runs returns the places of the parts in the fused weight, from their rows.
func (d *divided) runs(rows []uint64) ([]Runs, error) {
	n, missing := d.at.Groups(rows, d.base.Config.Widths)
	if missing != "" {
		return nil, d.unknown(missing)
	}
	if n == 0 {
		return nil, fault.New(fault.Mismatch, "%q: the rows %d of the projections do not fall into whole heads, "+
			"as config.json has them", d.layer.Module, rows).WithHint("%s", d.wrongBase())
	}
	runs, first := make([]Runs, len(rows)), 0
	for i, r := range rows {
		runs[i] = Runs{From: first, Size: int(r / n)}
		first += runs[i].Size
	}
	for i := range runs {
		runs[i].Step = first
	}
	return runs, nil
}

// instead says in words what the base has in place of the layer's module.
func (d *divided) instead() string {
	names := d.at.Weights()
	if d.at.Part >= 0 {
		return "it fused with others in " + fault.Quote(names[0])
	}
	return "its parts apart: " + strings.Join(names, ", ")
}

// misfit is the error for factors of another size than the rows of the base.
func (d *divided) misfit(but string, args ...any) error {
	n, m := d.factorShape(d.layer)
	return fault.New(fault.Mismatch, "%q: B·A is %d×%d, but "+but, append([]any{d.layer.Module, m, n}, args...)...).
		WithHint("%s", d.wrongBase())
}

// unknown is the error for a base whose configuration lacks numbers.
func (d *divided) unknown(members string) error {
	return fault.New(fault.Unsupported, "%q: the base has %s, and no config.json that says which rows belong "+
		"together", d.layer.Module, d.instead()).
		WithHint("put the model's own config.json beside its weights, with %s", members)
}
