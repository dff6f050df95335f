package merge

import (
	"encoding/json"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// This file expands factors that are stored compact: block-diagonal ones (BD-LoRA), ones of pooled inputs (QA-LoRA), and those of
// several projections in one weight (MergedLinear of loralib and of PEFT before 0.3).

// has reports whether the adapter requires a feature.
func (r *resolver) has(feature string) bool { return len(r.where(feature)) > 0 }

// where lists what the requirements of a feature say.
func (r *resolver) where(feature string) (all []string) {
	for _, q := range r.adapter.Requires {
		if q.Feature == feature {
			all = append(all, q.Where)
		}
	}
	return all
}

// addCompact adds the update of a layer whose factors are not those of the plain formula.
func (r *resolver) addCompact(l *format.Layer) error {
	_, hasA := l.Roles[format.RoleA]
	_, hasB := l.Roles[format.RoleB]
	if !hasA || !hasB || len(l.Roles) > 2 {
		return fault.New(fault.Unsupported, "%q is of an unknown kind, with %d tensors", l.Module, len(l.Roles))
	}
	scale, a, b, err := r.product(l)
	if err != nil {
		return err
	}
	sa, sb := a.tensor().Shape, b.tensor().Shape
	if len(sb) == 3 && sb[2] == 1 {
		sb = sb[:2] // a convolution of one point
	}
	if len(sa) != 2 || len(sb) != 2 || sa[0] == 0 || sa[1] == 0 || sb[0] == 0 || sb[1] == 0 {
		return fault.New(fault.Corrupt, "%q: lora_A has shape %d and lora_B %d", l.Module, a.tensor().Shape, b.tensor().Shape)
	}
	t, err := r.target(r.weightName(l))
	if err != nil {
		return err
	}
	if len(t.ref.Tensor.Shape) != 2 {
		return fault.New(fault.Mismatch, "%q: the base's weight has shape %d, and the factors are those of a linear layer", l.Module, t.ref.Tensor.Shape)
	}
	c := &compact{
		resolver: r, layer: l, target: t, a: a, b: b, rank: int(sa[0]), inputs: int(sa[1]), outputs: int(sb[0]), width: int(sb[1]),
		term: term{adapter: r.index, module: l.Module, scale: scale},
	}
	switch {
	case r.has(format.FeatureMergedLinear):
		return c.addProjections(r.where(format.FeatureMergedLinear)[0])
	case r.has(format.FeatureBDLoRA):
		return c.addBlocks()
	case r.has(format.FeatureQALoRA):
		return c.addPooled()
	}
	return fault.New(fault.Unsupported, "%q is of an unknown kind", l.Module)
}

// compact is a layer with compact factors: A is rank×inputs and B outputs×width as they are stored.
type compact struct {
	*resolver
	layer                        *format.Layer
	target                       *target
	a, b                         blob
	rank, inputs, outputs, width int
	term                         term
}

// orient decides whether the base stores the weight transposed: fits tells whether the factors go with m outputs and n inputs.
func (c *compact) orient(fits func(m, n int) bool) (turned bool, m, n int, err error) {
	shape := c.target.ref.Tensor.Shape
	rows, cols := int(shape[0]), int(shape[1])
	straight, turned := fits(rows, cols), fits(cols, rows)
	switch {
	case straight && turned && rows == cols:
		turned = c.orientSquare(c.layer)
	case straight:
		turned = false // as nn.Linear, for which these methods are made
	case !turned:
		return false, 0, 0, fault.New(fault.Mismatch, "%q: lora_A %d×%d and lora_B %d×%d do not go with the base's weight of shape %d",
			c.layer.Module, c.rank, c.inputs, c.outputs, c.width, shape).WithHint("%s", c.wrongBase())
	}
	if turned {
		rows, cols = cols, rows
	}
	return turned, rows, cols, nil
}

// add adds a term of some of the ranks.
func (c *compact) add(rank int, b, a factor, turned bool) {
	x := c.term
	x.rank = rank
	c.target.add(x, b, a, turned)
}

// addBlocks adds BD-LoRA: one of the factors is block-diagonal, and stored as its blocks, one below the other.
func (c *compact) addBlocks() error {
	turned, m, n, err := c.orient(func(m, n int) bool {
		inA := c.inputs < n && n%c.inputs == 0 && c.rank%(n/c.inputs) == 0 && c.width == c.rank
		inB := c.width < c.rank && c.rank%c.width == 0 && m%(c.rank/c.width) == 0 && c.inputs == n
		return c.outputs == m && (inA || inB || c.inputs == n && c.width == c.rank)
	})
	if err != nil {
		return err
	}
	a, b := wholeA(c.a, c.rank), wholeB(c.b, c.width)
	switch {
	case c.inputs < n:
		nBlocks := n / c.inputs
		each := c.rank / nBlocks
		for k := range nBlocks {
			c.add(each, b.ranks(k*each), a.ranks(k*each).to(k*c.inputs), turned)
		}
	case c.width < c.rank:
		nBlocks := c.rank / c.width
		rows := m / nBlocks
		for k := range nBlocks {
			c.add(c.width, b.part(k*rows, rows).to(k*rows), a.ranks(k*c.width), turned)
		}
	default:
		c.add(c.rank, b, a, turned)
	}
	return nil
}

// addPooled adds QA-LoRA: A reads the means of groups of g inputs, times the number of groups n/g, so that on single inputs it has each
// column g times, divided by g and multiplied by n/g. These go into the scale, which is rounded once more.
func (c *compact) addPooled() error {
	turned, _, n, err := c.orient(func(m, n int) bool { return c.outputs == m && c.width == c.rank && n%c.inputs == 0 })
	if err != nil {
		return err
	}
	group := n / c.inputs
	if group == 1 {
		return fault.New(fault.Unsupported, "the configuration says use_qalora, and lora_A of %q is not pooled: it has as many columns as the base", c.layer.Module).
			WithHint("if it is an ordinary LoRA, set use_qalora to false in adapter_config.json")
	}
	a := wholeA(c.a, c.rank)
	a.repeat, a.length = group, n
	c.term.scale *= float64(c.inputs) / float64(group)
	c.add(c.rank, wholeB(c.b, c.width), a, turned)
	return nil
}

// addProjections adds MergedLinear: the weight has several projections one below the other, some of which are adapted, and the rows
// of B are those of the adapted ones. A and B fall into groups of equal size, of which each has ranks of its own.
func (c *compact) addProjections(where string) error {
	_, list, _ := strings.Cut(where, "=")
	var enabled []bool
	if err := json.Unmarshal([]byte(list), &enabled); err != nil || len(enabled) == 0 {
		return fault.New(fault.Unsupported, "%q is a MergedLinear, and the file does not say which of its projections are adapted: %s", c.layer.Module, where).
			WithHint("a .lora file of an older version is converted again from its source")
	}
	nEnabled := 0
	for _, on := range enabled {
		if on {
			nEnabled++
		}
	}
	nGroups := c.rank / c.width
	if nEnabled == 0 || c.rank%c.width != 0 || c.outputs%nEnabled != 0 || c.outputs%nGroups != 0 {
		return fault.New(fault.Mismatch, "%q: lora_A %d×%d and lora_B %d×%d do not go with %d projections", c.layer.Module, c.rank, c.inputs, c.outputs, c.width, nEnabled)
	}
	rows := c.outputs / nEnabled
	turned, _, _, err := c.orient(func(m, n int) bool { return m == rows*len(enabled) && n == c.inputs })
	if err != nil {
		return err
	}
	a, b := wholeA(c.a, c.rank), wholeB(c.b, c.width)
	groupRows := c.outputs / nGroups
	row := 0
	for projection, on := range enabled {
		for done := 0; on && done < rows; {
			group := row / groupRows
			n := min(rows-done, (group+1)*groupRows-row)
			c.add(c.width, b.part(row, n).to(projection*rows+done), a.ranks(group*c.width), turned)
			row, done = row+n, done+n
		}
	}
	return nil
}
