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

// spend chooses the rank of every layer within a budget of bytes for the factors.
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

// offers lists the singular values of a tensor, from the largest on. The experts of a tensor have
// one rank, so each value is offered for all of them at once.
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

// buy spends a budget on the singular values with most energy per byte, over all layers, and
// returns the rank that each tensor gets. Within a layer values fall and all cost the same, so the
// order takes them from the largest on. cheapest is the least that a value costs, 0 where there is
// none.
func buy(all []candidate, budget int64) (ranks map[string]int, cheapest int64) {
	sort.SliceStable(all, func(i, j int) bool { return all[i].value > all[j].value })
	ranks = make(map[string]int)
	closed := make(map[string]bool) // layers whose next value was too expensive
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
