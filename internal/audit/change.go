package audit

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"

	model "github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/rank"
)

// mostRank is the largest rank that is looked for in a change.
const mostRank = 128

// Unclaimed describes a change for which no adapter is given.
type Unclaimed struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"`
	// Rank is the rank of the changed matrices if most have the same, 0 otherwise.
	Rank int `json:"rank"`
	// Layers have their rank above the noise of rounding, and the singular values above it.
	Layers []rank.ExtractedLayer `json:"layers"`
	// Whole lists changed tensors that are not decomposed, since they are no matrices, have no
	// floats, or have NaN. Elsewhere lists those that are new, gone or reshaped.
	Whole     []string `json:"whole"`
	Elsewhere []string `json:"elsewhere"`
	*rank.CheckpointComparison
}

// Kind is a guess at where a change comes from.
type Kind string

const (
	NoChange   Kind = "none"
	OneAdapter Kind = "one_adapter" // low rank, the same in nearly all matrices
	LowRank    Kind = "low_rank"    // low rank, but of different ranks
	FineTune   Kind = "fine_tune"   // most matrices have no low rank
	Unrelated  Kind = "unrelated"   // no tensor has its name and shape in both
)

// Change describes merged − base: which tensors changed, and whether their changes have a low rank,
// as those of an adapter have. It decomposes every change. If o.Path is set, the source is an
// adapter of the whole change for this path, and the caller closes it; otherwise it is nil.
func Change(
	ctx context.Context, base, merged *model.Checkpoint, o ChangeOptions,
) (*Unclaimed, format.Source, error) {
	difference, err := rank.CompareCheckpoints(ctx, base, merged, rank.CompareOptions{Workers: o.Workers})
	if err != nil {
		return nil, nil, err
	}
	r := &Unclaimed{Kind: NoChange, Layers: []rank.ExtractedLayer{}, Whole: []string{}, Elsewhere: []string{}, CheckpointComparison: difference}
	var changed []string
	w0 := (*checkpoint.Handle)(base).Checkpoint()
	for i := range difference.Tensors {
		switch t := &difference.Tensors[i]; {
		case t.Status == rank.Identical:
		case t.Status != rank.Changed:
			r.Elsewhere = append(r.Elsewhere, t.Tensor)
		case !isDecomposed(w0, t.Tensor), !isFloat(t.DTypeB), t.NonFinite > 0:
			r.Whole = append(r.Whole, t.Tensor)
		default:
			changed = append(changed, t.Tensor)
		}
	}
	if len(changed) == 0 && o.Path == "" {
		r.judge()
		return r, nil, nil
	}
	options := rank.ExtractOptions{Rule: rank.NoiseFloor{Max: mostRank}, Workers: o.Workers, Path: o.Path, PEFT: o.PEFT, Tool: o.Tool}
	if o.Path == "" {
		options.Only, options.Include = true, exactly(changed)
	}
	src, layers, err := decompose(ctx, base, merged, options)
	if err != nil {
		return nil, nil, err
	}
	r.Layers = layers
	r.judge()
	if o.Path == "" {
		return r, nil, src.Close()
	}
	return r, src, nil
}

// ChangeOptions tune Change.
type ChangeOptions struct {
	Workers int    // goroutines; 0 means one per processor
	Path    string // the future path of an adapter of the change; "" makes none
	PEFT    bool   // use PEFT's names and layout in it
	Tool    string // name and version of the calling program, for its provenance
}

// isDecomposed reports whether a change of a tensor is decomposed: it has two dimensions or more,
// and floats.
func isDecomposed(c *checkpoint.Checkpoint, name string) bool {
	ref, ok := c.Lookup(name)
	return ok && len(ref.Tensor.Shape) >= 2 && ref.Tensor.DType.IsFloat() && !slices.Contains(ref.Tensor.Shape, 1)
}

// isFloat reports whether a dtype, by its name, is one of the floats that a change is taken in.
func isFloat(name string) bool {
	d, ok := dtype.Parse(name)
	return ok && d.IsFloat()
}

// exactly matches some names.
func exactly(names []string) []*regexp.Regexp {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return []*regexp.Regexp{regexp.MustCompile("^(?:" + strings.Join(quoted, "|") + ")$")}
}

// decompose finds the ranks of changes. The caller closes the source.
func decompose(
	ctx context.Context, base, merged *model.Checkpoint, o rank.ExtractOptions,
) (format.Source, []rank.ExtractedLayer, error) {
	e, err := rank.NewExtraction(base, merged, o)
	if err != nil {
		return nil, nil, err
	}
	src, found, err := e.Run(ctx)
	if err != nil {
		return nil, nil, err
	}
	return src, found.Layers, nil
}

// isLow reports whether the change of a layer has a low rank: above it there is only noise.
func isLow(l *rank.ExtractedLayer) bool { return l.Rank < mostRank && l.Rank*4 <= min(l.M, l.N) }

// judge guesses where the change comes from.
func (r *Unclaimed) judge() {
	low, byRank := 0, make(map[int]int)
	for i := range r.Layers {
		if l := &r.Layers[i]; isLow(l) {
			low++
			byRank[l.Rank]++
		}
	}
	common := 0
	for k, n := range byRank {
		if n > byRank[common] || n == byRank[common] && k > common {
			common = k
		}
	}
	n := len(r.Layers)
	switch {
	case n == 0 && r.Same():
		r.Kind, r.Text = NoChange, "the two have the same values"
	case len(r.Elsewhere) == len(r.Tensors):
		r.Kind, r.Text = Unrelated, "no tensor is in both with the same name and shape: these are different models"
	case n == 0:
		r.Kind = FineTune
		r.Text = fmt.Sprintf("%s changed, and none is a matrix of finite floats", fault.Count(len(r.Whole), "tensor"))
	case low*10 < n*9:
		r.Kind = FineTune
		r.Text = fmt.Sprintf("%d of %d changed matrices have no low rank: a fine-tune of whole weights", n-low, n)
	case byRank[common]*10 >= n*9:
		r.Kind, r.Rank = OneAdapter, common
		r.Text = fmt.Sprintf("%d of %d changed matrices have rank %d: one adapter of this rank", byRank[common], n, common)
	default:
		r.Kind = LowRank
		r.Text = fmt.Sprintf("%d of %d changed matrices have a low rank, most often %d: several adapters, or one whose ranks differ", low, n, common)
	}
}

// rankForeign finds the ranks of changes that no adapter explains.
func (a *auditor) rankForeign(base, merged *model.Checkpoint) error {
	var names []string
	byName := make(map[string]*expected)
	for _, e := range a.expected {
		if e.found.Finding == Foreign && e.base != nil && e.merged.DType.IsFloat() && isDecomposed(a.stored, e.Name) {
			names = append(names, e.Name)
			byName[strings.TrimSuffix(e.Name, ".weight")] = e
		}
	}
	if len(names) == 0 {
		return nil
	}
	if a.stored.Config.Architecture != "" { // extract knows the tensors of a GGUF file by other names
		for _, e := range byName {
			e.found.Text = cmp.Or(e.found.Text, "the ranks of changes in GGUF files are not computed")
		}
		return nil
	}
	src, layers, err := decompose(a.ctx, base, merged, rank.ExtractOptions{
		Rule: rank.NoiseFloor{Max: mostRank}, Only: true, Workers: a.o.Workers, Include: exactly(names),
	})
	if err != nil {
		return err
	}
	defer src.Close()
	for i := range layers {
		l := &layers[i]
		e := byName[l.Module]
		if e == nil {
			continue
		}
		t := &e.found
		switch t.Rank = l.Rank; {
		case isLow(l) && e.change != nil:
			t.Finding = Other
			t.Text = fmt.Sprintf("its rank is %d", l.Rank)
		case isLow(l):
			t.Text = fmt.Sprintf("its rank is %d, and no adapter changes the tensor", l.Rank)
		case e.change != nil:
			t.Text = "it is not the adapter's, and has no low rank"
		default:
			t.Text = "it has no low rank, and no adapter changes the tensor"
		}
	}
	return nil
}
