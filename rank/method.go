package rank

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/dense"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/thin"
)

// Method is a way to join the updates of several adapters. All but Sum choose single elements of
// each ΔW. A rule then gives the result a low rank, so that they need one.
type Method string

// The methods. Density is CombineOptions.Density.
const (
	// Sum is Σ w·ΔW.
	Sum Method = ""
	// Prune keeps the largest elements of each ΔW, Density of them, and adds up.
	Prune Method = "prune"
	// TIES prunes, elects a sign for each element, that of the sum of all, and takes Σ w·ΔW of the
	// elements with that sign, divided by their number (Yadav et al., arXiv:2306.01708).
	TIES Method = "ties"
	// DARE keeps random elements of each ΔW, each with the probability Density, divides them by
	// Density, and adds up (Yu et al., arXiv:2311.03099).
	DARE Method = "dare"
	// DARETIES is DARE with the election of TIES in place of the sum.
	DARETIES Method = "dare-ties"
)

func (m Method) isRandom() bool { return m == DARE || m == DARETIES }
func (m Method) elects() bool   { return m == TIES || m == DARETIES }

// checkMethod checks the options that a method needs.
func (o *CombineOptions) checkMethod() error {
	switch o.Method {
	case Sum:
		if o.Density != 0 || o.Seed != 0 {
			return fmt.Errorf("CombineOptions.Density and Seed are for a Method")
		}
		return nil
	case Prune, TIES, DARE, DARETIES:
	default:
		return fmt.Errorf("CombineOptions.Method is %q, want prune, ties, dare or dare-ties", o.Method)
	}
	if o.Rule == nil {
		return fmt.Errorf("CombineOptions.Method %q has full rank, and needs a Rule", o.Method)
	}
	if !(o.Density > 0 && o.Density <= 1) {
		return fmt.Errorf("CombineOptions.Density is %v, want more than 0 and at most 1", o.Density)
	}
	return nil
}

// mixRows is the number of rows of ΔW that are formed together.
const mixRows = 32

// mix computes a layer of a method other than Sum. Its ΔW is formed in float32, block by block.
func (c *combining) mix(ctx context.Context, g *group, rule Rule) error {
	terms, err := c.terms(ctx, g)
	if err != nil {
		return err
	}
	layout := g.members[0].factors
	var made []*thin.Matrix
	k := 1
	var all energies
	for i := range terms {
		x := &mixture{combining: c, group: g, block: i, rows: layout.rows, cols: layout.cols}
		for j, t := range terms[i] {
			m := &g.members[j]
			x.parts = append(x.parts, part{
				Matrix: t.Matrix, scale: m.layer.Scale(), weight: c.weights[m.source], source: m.source,
			})
		}
		u, err := x.form(ctx)
		if err != nil {
			return err
		}
		d, err := truncate(ctx, u, g.module, rule, c.dtypeOf(g), Options{Seed: c.options.Seed, Workers: 1})
		if err != nil {
			return err
		}
		f := &thin.Matrix{M: x.rows, N: x.cols, R: d.K, B: make([]float64, x.rows*d.K), A: make([]float64, x.cols*d.K)}
		for n, v := range d.left {
			f.B[n] = float64(v)
		}
		for n, v := range d.right {
			f.A[n%x.cols*d.K+n/x.cols] = float64(v)
		}
		made, k = append(made, f), max(k, d.K)
		all.add(&energies{all: d.Energy, left: d.squares, rounded: d.rounded})
		if len(g.result.SingularValues) == 0 || len(d.S) > 0 && d.S[0] > g.result.SingularValues[0] {
			g.result.SingularValues = d.S
		}
	}
	for i := range made {
		made[i] = padded(made[i], k)
	}
	stored, err := layout.store(made, c.dtypeOf(g))
	if err != nil {
		return err
	}
	g.layer.Scaling, g.layer.Fixed = format.Fixed, 1
	g.result.Rank, g.result.Exact, g.result.energies = k, false, all
	return c.put(g, stored)
}

// mixture is the ΔW of one block of a layer.
type mixture struct {
	*combining
	*group
	block, rows, cols int
	parts             []part
}

// part is the ΔW of one adapter, scale·B·A.
type part struct {
	*thin.Matrix
	scale, weight float64
	source        int
	least         float64 // the smallest magnitude that pruning keeps
}

// form forms the mixture.
func (x *mixture) form(ctx context.Context) (*update, error) {
	if !x.options.Method.isRandom() {
		for i := range x.parts {
			if err := x.prune(ctx, &x.parts[i]); err != nil {
				return nil, err
			}
		}
	}
	u := &update{dense: &Dense{M: x.rows, N: x.cols, Data: make([]float32, x.rows*x.cols), Workers: 1}}
	pieces := make([][]float64, len(x.parts))
	for first := 0; first < x.rows; first += mixRows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(mixRows, x.rows-first)
		for i := range x.parts {
			pieces[i] = x.parts[i].form(pieces[i], first, n)
			x.drop(&x.parts[i], pieces[i], first)
		}
		out := u.dense.Data[first*x.cols : (first+n)*x.cols]
		for j := range out {
			out[j] = float32(x.join(pieces, j))
			u.energy += float64(out[j]) * float64(out[j])
		}
	}
	if norm(u.energy) > maxNorm || u.energy-u.energy != 0 {
		return nil, fault.New(fault.Unsupported, "the update of %q has the norm %.3g, but the decomposition in float32 takes at most %.3g",
			x.module, norm(u.energy), maxNorm)
	}
	return u, nil
}

// form forms n rows of ΔW in dst.
func (p *part) form(dst []float64, first, n int) []float64 {
	if dst == nil {
		dst = make([]float64, mixRows*p.N)
	}
	dst = dst[:n*p.N]
	clear(dst)
	dense.AddProductTransposed(dst, p.B[first*p.R:(first+n)*p.R], p.A, n, p.N, p.R)
	for i := range dst {
		dst[i] *= p.scale
	}
	return dst
}

// drop replaces elements of rows of ΔW by zeros: the small ones, or random ones. Random numbers
// depend on the seed, the adapter, the layer and the row alone.
func (x *mixture) drop(p *part, rows []float64, first int) {
	density := x.options.Density
	if !x.options.Method.isRandom() {
		for j, v := range rows {
			if math.Abs(v) < p.least {
				rows[j] = 0
			}
		}
		return
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %s", p.source, x.block, x.module)
	for i := 0; i < len(rows); i += x.cols {
		rng := rand.New(rand.NewPCG(x.options.Seed^h.Sum64(), uint64(first+i/x.cols)))
		for j := range x.cols {
			if rng.Float64() < density {
				rows[i+j] /= density
			} else {
				rows[i+j] = 0
			}
		}
	}
}

// join computes element j of the mixture from those of the parts.
func (x *mixture) join(pieces [][]float64, j int) (sum float64) {
	if !x.options.Method.elects() {
		for i, p := range pieces {
			sum += x.parts[i].weight * p[j]
		}
		return sum
	}
	var elected float64
	for _, p := range pieces {
		elected += p[j]
	}
	n := 0
	for i, p := range pieces {
		if v := p[j]; v != 0 && (v > 0) == (elected >= 0) {
			sum += x.parts[i].weight * v
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// prune finds the magnitude of the last element that pruning keeps: element number Density·m·n,
// rounded up, in descending order. It counts magnitudes by the upper halves of their bits in
// float32, and then the lower halves within one upper half; those of equal float32 all stay.
func (x *mixture) prune(ctx context.Context, p *part) error {
	keep := int64(math.Ceil(x.options.Density * float64(x.rows) * float64(x.cols)))
	var upper uint32
	for _, shift := range []int{16, 0} {
		counts := make([]int64, 1<<16)
		var rows []float64
		for first := 0; first < x.rows; first += mixRows {
			if err := ctx.Err(); err != nil {
				return err
			}
			rows = p.form(rows, first, min(mixRows, x.rows-first))
			for _, v := range rows {
				bits := math.Float32bits(float32(math.Abs(v)))
				if shift == 16 || bits>>16 == upper {
					counts[bits>>shift&0xffff]++
				}
			}
		}
		at := len(counts) - 1
		for ; at > 0 && counts[at] < keep; at-- {
			keep -= counts[at]
		}
		if shift == 16 {
			upper = uint32(at)
		} else {
			// The smallest number that rounds to this float32 or above is not below the middle of
			// it and the one before.
			value := math.Float32frombits(upper<<16 | uint32(at))
			p.least = (float64(value) + float64(math.Nextafter32(value, -1))) / 2
		}
	}
	return nil
}
