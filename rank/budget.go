package rank

import (
	"context"
	"sort"
)

// defaultBudgetRank is the most that a budget gives to one layer where nothing else is said.
const defaultBudgetRank = 64

// candidate is one singular value that a budget can buy.
type candidate struct {
	tensor string
	value  float64 // energy per byte
	bytes  int64
}

// spend chooses the rank of every layer within a budget of bytes for the factors: the singular
// values with most energy per byte first, over all layers. Within a layer values fall and all cost
// the same, so the order takes them from the largest on.
func (r *extracting) spend(ctx context.Context) error {
	most := r.options.MaxRank
	if most == 0 {
		most = defaultBudgetRank
	}
	var all []candidate
	for i := range r.pairs {
		p := &r.pairs[i]
		v, lowRank := r.view(p)
		if !lowRank {
			continue
		}
		if same, err := p.equal(ctx); err != nil || same {
			if err != nil {
				return err
			}
			continue
		}
		// The experts of a tensor have one rank, so it is bought for all of them at once.
		energy := make([]float64, most)
		for e := range v.slabs {
			s, err := r.decompose(ctx, p, v, e, FixedRank{most})
			if err != nil {
				return err
			}
			for i, sigma := range s.S {
				energy[i] += sigma * sigma
			}
		}
		cost := int64(v.slabs) * int64(v.rows+v.cols) * int64(r.options.DType.Size())
		for _, x := range energy {
			if x > 0 {
				all = append(all, candidate{p.name, x / float64(cost), cost})
			}
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].value > all[j].value })
	r.ranks = make(map[string]int)
	closed := make(map[string]bool) // layers whose next value was too expensive
	left := r.options.Budget
	for i, c := range all {
		if i == 0 || c.bytes < r.cheapest {
			r.cheapest = c.bytes
		}
		if closed[c.tensor] || c.bytes > left {
			closed[c.tensor] = true
			continue
		}
		left -= c.bytes
		r.ranks[c.tensor]++
	}
	return nil
}
