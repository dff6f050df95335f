package rank

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Image and video models name their tensors in several ways, and store as one weight what others
// store as three. An extraction shows the tuned checkpoint as if it had been saved like the base.

// matchImages returns the tuned checkpoint of an image or video model with the names and rows of
// the base, and says how they belong together. For any other model it returns tuned itself, and
// nil.
func matchImages(
	base, tuned *checkpoint.Checkpoint,
) (*checkpoint.Checkpoint, *naming.Twins, error) {
	twins := naming.FindTwins(naming.Index(base.Names()), naming.Index(tuned.Names()),
		shapesOf(base), shapesOf(tuned))
	if twins == nil {
		return tuned, nil, nil
	}
	if err := refuseStrangers(twins); err != nil {
		return nil, nil, err
	}
	var tensors []checkpoint.Assembled
	for _, name := range base.Names() {
		at := twins.Slices[name]
		if len(at) == 0 || len(at) == 1 && at[0].Weight == name {
			continue
		}
		ref, _ := base.Lookup(name)
		if a, ok := assembled(ref.Tensor, tuned, at); ok {
			tensors = append(tensors, a)
		}
	}
	if len(tensors) == 0 {
		return tuned, twins, nil
	}
	view, err := tuned.Assemble(tensors)
	return view, twins, fault.InFile(err, tuned.Path)
}

// assembled returns the slices of a tuned checkpoint that stand for a tensor of the base. ok is
// false if they have several dtypes.
func assembled(
	base *checkpoint.Tensor, tuned *checkpoint.Checkpoint, at []naming.Slice,
) (a checkpoint.Assembled, ok bool) {
	first, _ := tuned.Lookup(at[0].Weight)
	a = checkpoint.Assembled{Name: base.Name, Shape: base.Shape}
	elements := uint64(0)
	for _, s := range at {
		ref, _ := tuned.Lookup(s.Weight)
		t := ref.Tensor
		if t.DType != first.Tensor.DType {
			return a, false
		}
		elements += uint64(t.Elements()) / max(rowsOf(t), 1) * s.Rows
		a.From = append(a.From, checkpoint.Rows{Tensor: s.Weight, At: s.At, N: s.Rows})
	}
	if elements != uint64(base.Elements()) {
		a.Shape = first.Tensor.Shape // of another size, which is said later on
	}
	return a, true
}

// rowsOf returns the first dimension; a tensor without dimensions is one row.
func rowsOf(t *checkpoint.Tensor) uint64 {
	if len(t.Shape) == 0 {
		return 1
	}
	return t.Shape[0]
}

func shapesOf(c *checkpoint.Checkpoint) naming.ShapeOf {
	names := naming.Index(c.Names())
	return func(name string) []uint64 {
		ref, _ := c.Lookup(names.Actual(name))
		return ref.Tensor.Shape
	}
}

// refuseStrangers returns an error if the two models are of different architectures or sizes.
func refuseStrangers(t *naming.Twins) error {
	const hint = "use the base that the tuned checkpoint was trained from"
	if len(t.Strangers) > 0 {
		p := t.Strangers[0]
		a, b := p.A.Architecture, p.B.Architecture
		if p.Misfits == 0 || a != b {
			return fault.New(fault.Mismatch, "the two checkpoints are different models: the %s of the "+
				"base is %s, and that of the tuned checkpoint is %s", p.A.Name, a, b).WithHint(hint)
		}
		return fault.New(fault.Mismatch, "the two checkpoints are models of different sizes: of the %s, "+
			"%d of %s have another shape in the tuned checkpoint, such as %q", p.A.Name, p.Misfits,
			fault.Count(p.A.Weights, "weight"), p.Misfit).WithHint(hint)
	}
	if p := t.Ambiguous; len(p) > 0 {
		return fault.New(fault.Mismatch, "a component of one checkpoint fits two of the other: "+
			"%s and %s; %s and %s", componentText(p[0].A), componentText(p[0].B),
			componentText(p[1].A), componentText(p[1].B)).
			WithHint("give the directory or the file of the one component as BASE or TUNED")
	}
	return nil
}

// componentText names a component.
func componentText(c naming.Component) string {
	if c.Prefix == "" {
		return fmt.Sprintf("%s (names without a component)", c.Name)
	}
	return fmt.Sprintf("%s (%q)", c.Name, c.Prefix)
}

// isComponent reports whether a tensor of the base is in a denoiser or a text encoder.
func isComponent(twins *naming.Twins, name string) bool {
	prefix := naming.PrefixOf(naming.StripWrappers(name))
	isHere := func(p naming.Pairing) bool { return p.A.Prefix == prefix }
	return slices.ContainsFunc(twins.Pairs, isHere)
}

// isForeign reports whether a tensor that only one of two image models has need not be a change: it
// lies in a component that the other one lacks, or may have there a name that no table knows.
func isForeign(twins *naming.Twins, name string, isBase bool) bool {
	if twins == nil {
		return false
	}
	prefix := naming.PrefixOf(naming.StripWrappers(name))
	return !slices.ContainsFunc(twins.Pairs, func(p naming.Pairing) bool {
		if isBase {
			return p.A.Prefix == prefix && !p.Renamed
		}
		return p.B.Prefix == prefix && !p.Renamed
	})
}
