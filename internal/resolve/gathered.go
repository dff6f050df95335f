package resolve

import (
	"fmt"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// gathered is a layer of one expert that the base stacks with others in a parameter.
type gathered struct {
	*resolver
	layer     *format.Layer
	parameter string
	expert    int
	part      int // number of the layer's part; the parts of an expert lie one below the other
	parts     int
}

// find returns the form of the layer, or nil if the base has a module for the expert.
func (g gathered) find() form {
	if apart := naming.Module(g.parameter) + "." + naming.Leaf(g.layer.Module); apart != g.parameter && g.names.HasTail(tail(apart, 2)) {
		g.parameter, g.part, g.parts = apart, 0, 1 // the base stacks the part alone
		return &g
	}
	if naming.HasWeight(g.names, g.layer.Module, 3) || !g.names.HasTail(tail(g.parameter, 2)) {
		return nil
	}
	return &g
}

func (g *gathered) wants() []string { return []string{g.parameter} }

// add adds the update of a weight of one expert to the parameter that it is part of.
func (g *gathered) add() error {
	l, parameter, parts := g.layer, g.parameter, g.parts
	x, a, b, err := g.term(l)
	if err != nil {
		return err
	}
	if nOperands(l) > 2 {
		return fault.New(fault.Unsupported, "%q has DoRA or a bias beside lora_A and lora_B, but the base stacks that expert with others in %q", l.Module, parameter).
			WithHint("merge into a checkpoint with a module per expert")
	}
	if g.isInPairs(l) {
		return fault.New(fault.Unsupported, "%q has the rows of each attention head in the order of llama.cpp, "+
			"and the base stacks that expert with others in %q", l.Module, parameter)
	}
	if err := g.checkInterleaved(l, parts); err != nil {
		return err
	}
	n, m := g.factorShape(l)
	shape := g.tensor(parameter).Shape
	rows := m * uint64(parts)
	if len(shape) == 3 && uint64(g.expert) >= shape[0] {
		return fault.New(fault.Mismatch, "the base's %q stacks %s, but the adapter changes number %d: %q",
			parameter, fault.Count(int64(shape[0]), "expert"), g.expert, l.Module).WithHint("the adapter was made for another base, which has more experts")
	}
	if len(shape) != 3 || !(shape[1] == rows && shape[2] == n || shape[1] == n && shape[2] == rows) {
		return fault.New(fault.Mismatch, "%q: B·A is %d×%d for %s, but the base's %q has shape %d", l.Module, m, n, partOfExpert(parts), parameter, shape).
			WithHint("%s", g.wrongBase())
	}
	transposed, err := g.standsTransposed(l, shape, n)
	if err != nil {
		return err
	}
	c, err := g.stackedChange(parameter)
	if err != nil {
		return err
	}
	x.Band = g.expert
	c.add(x, g.partOf(wholeB(b, l.Rank), g.part, parts), WholeA(a, l.Rank), transposed)
	return nil
}

// partOfExpert says in words for how much of an expert a layer of one of n parts is.
func partOfExpert(n int) string {
	return fault.Choose(n, "a whole expert", fmt.Sprintf("one of %d parts of an expert", n))
}

// partOf moves B of one of several parts of an expert to the rows of the part: below those of the
// parts before it, or in turns with them.
func (s *sheet) partOf(b Factor, part, parts int) Factor {
	if parts > 1 && naming.HasInterleavedExperts(s.base.Config.ModelType) {
		b.Runs = Runs{From: part, Size: 1, Step: parts}
		return b
	}
	return b.to(part * b.Length)
}

// checkInterleaved refuses a layer of one of several parts of an expert if the base interleaves the
// rows of the parts, as gpt-oss does.
func (s *sheet) checkInterleaved(l *format.Layer, parts int) error {
	modelType := s.base.Config.ModelType
	if parts < 2 || !naming.HasInterleavedExperts(modelType) || s.reading.ExpertTurns {
		return nil
	}
	return fault.New(fault.Unsupported, "%q: models of type %s interleave the rows of an expert's "+
		"gate and up projections, and nothing in the adapter tells that its rows are those of one of them",
		l.Module, modelType).WithHint("set Options.ExpertTurns if they are, as in adapters of Tinker: the gate gets every " +
		"other row from the first one on; or merge into a checkpoint with a module per expert")
}

// standsTransposed decides whether the base stores an expert of a stacked parameter n×m: by the
// shape, and for a square one by the type of the model.
func (s *sheet) standsTransposed(l *format.Layer, shape []uint64, n uint64) (bool, error) {
	modelType := s.base.Config.ModelType
	switch {
	case shape[1] != shape[2]:
		return shape[1] == n, nil
	case s.base.isGGUF():
		return false, nil
	case s.reading.ExpertInput > 0:
		return s.reading.ExpertInput == 1, nil
	case modelType == "" || naming.LoadsExpertsTransposed(modelType):
		return false, undecided(l, stack{d1: shape[1], d2: shape[2]}, "the base does not say how it stores them")
	}
	return naming.HasTransposedExperts(modelType), nil
}
