package rank

import (
	"context"
	"sort"
)

// candidate is a singular value that a budget can buy.
type candidate struct {
	tensor string
	value  float64 // energy per byte
	bytes  int64
}

// spend chooses the ranks of all layers within the budget.
func (r *extracting) spend(ctx context.Context) error {
	var all []candidate
	for i := range r.pairs {
		p := &r.pairs[i]
		v, lowRank := r.view(p)
		if !lowRank {
			continue
		}
		same, err := p.equal(ctx)
		if err == nil && !same {
			var offers []candidate
			offers, err = r.offers(ctx, p, v)
			all = append(all, offers...)
		}
		if err != nil {
			return err
		}
	}
	r.ranks, r.cheapest = buy(all, r.options.Budget)
	return nil
}

// offers lists the singular values of a tensor, from the largest on. Stacked experts share one
// rank, so each value is offered for all of them together.
func (r *extracting) offers(ctx context.Context, p *pair, v view) (offers []candidate, err error) {
	most := r.options.MaxRank
	if most == 0 {
		most = defaultBudgetRank
	}
	energy := make([]float64, most)
	for e := range v.slabs {
		s, err := r.decompose(ctx, p, v, e, FixedRank{most})
		if err != nil {
			return nil, err
		}
		for i, sigma := range s.S {
			energy[i] += sigma * sigma
		}
	}
	cost := int64(v.slabs) * int64(v.rows+v.cols) * int64(r.options.DType.Size())
	for _, x := range energy {
		if x > 0 {
			offers = append(offers, candidate{p.name, x / float64(cost), cost})
		}
	}
	return offers, nil
}

// buy spends the budget over all layers on the values with the most energy per byte, and returns
// the rank of each tensor. Within a layer all values cost the same, so the largest are bought
// first. cheapest is the lowest price, 0 without candidates.
func buy(all []candidate, budget int64) (ranks map[string]int, cheapest int64) {
	sort.SliceStable(all, func(i, j int) bool { return all[i].value > all[j].value })
	ranks = make(map[string]int)
	closed := make(map[string]bool) // layers whose next value did not fit the budget
	for i, c := range all {
		if i == 0 || c.bytes < cheapest {
			cheapest = c.bytes
		}
		if closed[c.tensor] || c.bytes > budget {
			closed[c.tensor] = true
			continue
		}
		budget -= c.bytes
		ranks[c.tensor]++
	}
	return ranks, cheapest
}
