package resolve

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// This file expands compact factors: block-diagonal ones (BD-LoRA), pooled inputs (QA-LoRA), and
// several projections in one weight (MergedLinear of loralib and of PEFT before 0.3).

// compact is a layer with compact factors, stored as A, rank×inputs, and B, outputs×width.
type compact struct {
	*resolver
	layer                        *format.Layer
	target                       *Change
	a, b                         Blob
	rank, inputs, outputs, width int
	x                            Term
}

func (c *compact) wants() []string { return []string{c.weightName(c.layer)} }

func (c *compact) add() error {
	l := c.layer
	_, hasA := l.Roles[format.RoleA]
	_, hasB := l.Roles[format.RoleB]
	if !hasA || !hasB || nOperands(l) > 2 {
		return fault.New(fault.Unsupported, "%q is of an unknown kind, with %s", l.Module, fault.Count(len(l.Roles), "tensor"))
	}
	x, a, b, err := c.term(l)
	if err != nil {
		return err
	}
	sa, sb := a.Tensor().Shape, b.Tensor().Shape
	if len(sb) == 3 && sb[2] == 1 {
		sb = sb[:2] // a convolution with a kernel of one element
	}
	if len(sa) != 2 || len(sb) != 2 || sa[0] == 0 || sa[1] == 0 || sb[0] == 0 || sb[1] == 0 {
		return fault.New(fault.Corrupt, "%q: lora_A has shape %d and lora_B %d, want two matrices that are not empty", l.Module, a.Tensor().Shape, b.Tensor().Shape)
	}
	if c.target, err = c.change(c.weightName(l), false); err != nil {
		return err
	}
	if shape := c.target.Shape; len(shape) != 2 {
		return fault.New(fault.Mismatch, "%q: the base's weight has shape %d, but the factors are those of a linear layer", l.Module, shape)
	}
	c.x, c.a, c.b = x, a, b
	c.rank, c.inputs, c.outputs, c.width = int(sa[0]), int(sa[1]), int(sb[0]), int(sb[1])
	switch {
	case c.has(format.FeatureMergedLinear):
		return c.addProjections(format.Requirement{Feature: format.FeatureMergedLinear, Where: c.features[format.FeatureMergedLinear][0]})
	case c.has(format.FeatureBDLoRA):
		return c.addBlocks()
	case c.has(format.FeatureQALoRA):
		return c.addPooled()
	}
	return fault.New(fault.Unsupported, "%q is of an unknown kind", l.Module)
}

// orient decides whether the base stores the weight transposed: fits reports whether the factors
// match m outputs and n inputs.
func (c *compact) orient(fits func(m, n int) bool) (transposed bool, m, n int, err error) {
	shape := c.target.Shape
	rows, cols := int(shape[0]), int(shape[1])
	asLinear, transposed := fits(rows, cols), fits(cols, rows)
	switch {
	case asLinear && transposed && rows == cols:
		if transposed, err = c.orientSquare(c.layer); err != nil {
			return false, 0, 0, err
		}
	case asLinear:
		transposed = false // these methods adapt nn.Linear
	case !transposed:
		return false, 0, 0, fault.New(fault.Mismatch, "%q: lora_A %d×%d and lora_B %d×%d do not fit the base's weight of shape %d",
			c.layer.Module, c.rank, c.inputs, c.outputs, c.width, shape).WithHint("%s", c.wrongBase())
	}
	if transposed {
		rows, cols = cols, rows
	}
	return transposed, rows, cols, nil
}

// addRanks adds a term for some of the ranks.
func (c *compact) addRanks(rank int, b, a Factor, transposed bool) {
	x := c.x
	x.Rank = rank
	c.target.add(x, b, a, transposed)
}

// addBlocks adds BD-LoRA: one factor is block-diagonal and stores its blocks by rows.
func (c *compact) addBlocks() error {
	transposed, m, n, err := c.orient(func(m, n int) bool {
		inA := c.inputs < n && n%c.inputs == 0 && c.rank%(n/c.inputs) == 0 && c.width == c.rank
		inB := c.width < c.rank && c.rank%c.width == 0 && m%(c.rank/c.width) == 0 && c.inputs == n
		return c.outputs == m && (inA || inB || c.inputs == n && c.width == c.rank)
	})
	if err != nil {
		return err
	}
	a, b := WholeA(c.a, c.rank), wholeB(c.b, c.width)
	switch {
	case c.inputs < n:
		nBlocks := n / c.inputs
		each := c.rank / nBlocks
		for k := range nBlocks {
			c.addRanks(each, b.ranks(k*each), a.ranks(k*each).to(k*c.inputs), transposed)
		}
	case c.width < c.rank:
		nBlocks := c.rank / c.width
		rows := m / nBlocks
		for k := range nBlocks {
			c.addRanks(c.width, b.part(k*rows, rows).to(k*rows), a.ranks(k*c.width), transposed)
		}
	default:
		c.addRanks(c.rank, b, a, transposed)
	}
	return nil
}

// addPooled adds QA-LoRA. A reads the means of groups of g inputs, times the number of groups n/g.
// On single inputs, each column of A repeats g times, divided by g and multiplied by n/g. The scale
// absorbs both factors and is rounded once more.
func (c *compact) addPooled() error {
	transposed, _, n, err := c.orient(func(m, n int) bool { return c.outputs == m && c.width == c.rank && n%c.inputs == 0 })
	if err != nil {
		return err
	}
	group := n / c.inputs
	if group == 1 {
		return fault.New(fault.Unsupported, "the configuration says use_qalora, but lora_A of %q is not pooled: it has as many columns as the base", c.layer.Module).
			WithHint("if it is an ordinary LoRA, set use_qalora to false in adapter_config.json")
	}
	a := WholeA(c.a, c.rank)
	a.Repeat, a.Length = group, n
	c.x.Scale *= float64(c.inputs) / float64(group)
	c.addRanks(c.rank, wholeB(c.b, c.width), a, transposed)
	return nil
}

// addProjections adds MergedLinear: the weight stacks several projections, the adapter adapts some
// of them, and B holds only their rows. A and B split into groups of equal size, each with its own
// ranks.
func (c *compact) addProjections(q format.Requirement) error {
	enabled := q.Projections() // not empty: see unsaidProjections
	nEnabled := 0
	for _, on := range enabled {
		if on {
			nEnabled++
		}
	}
	nGroups := c.rank / c.width
	if nEnabled == 0 || c.rank%c.width != 0 || c.outputs%nEnabled != 0 || c.outputs%nGroups != 0 {
		return fault.New(fault.Mismatch, "%q: lora_A %d×%d and lora_B %d×%d do not fit %s", c.layer.Module, c.rank, c.inputs, c.outputs, c.width, fault.Count(nEnabled, "projection"))
	}
	rows := c.outputs / nEnabled
	transposed, _, _, err := c.orient(func(m, n int) bool { return m == rows*len(enabled) && n == c.inputs })
	if err != nil {
		return c.miscounted(len(enabled), rows, err)
	}
	a, b := WholeA(c.a, c.rank), wholeB(c.b, c.width)
	groupRows := c.outputs / nGroups
	row := 0
	for projection, on := range enabled {
		for done := 0; on && done < rows; {
			group := row / groupRows
			n := min(rows-done, (group+1)*groupRows-row)
			c.addRanks(c.width, b.part(row, n).to(projection*rows+done), a.ranks(group*c.width), transposed)
			row, done = row+n, done+n
		}
	}
	return nil
}

// miscounted is the error for a list of projections that is longer or shorter than the base's
// weight, or another error if that is not it.
func (c *compact) miscounted(listed, rows int, otherwise error) error {
	m, n := int(c.target.Shape[0]), int(c.target.Shape[1])
	if n != c.inputs {
		m, n = n, m
	}
	if n != c.inputs || m%rows > 0 {
		return otherwise
	}
	return fault.New(fault.Mismatch, "%q: enable_lora lists %s of %d rows, but the base's weight of shape %d has %d",
		c.layer.Module, fault.Count(listed, "projection"), rows, c.target.Shape, m/rows).
		WithHint("give Options.EnableLoRA a list of %d, with true for each projection that the training adapted", m/rows)
}
