package rank

import (
	"maps"
	"testing"
)

// TestBudgetBuysTheBestPerByte: the case is small enough to check the purchases by hand.
func TestBudgetBuysTheBestPerByte(t *testing.T) {
	all := []candidate{{"wide", 8, 30}, {"wide", 3, 30}, {"thin", 5, 10}, {"thin", 4, 10}, {"huge", 9, 100}}
	for _, c := range []struct {
		budget int64
		want   map[string]int
	}{
		{5, map[string]int{}},
		{10, map[string]int{"thin": 1}},
		{30, map[string]int{"wide": 1}},
		{50, map[string]int{"wide": 1, "thin": 2}},
		{85, map[string]int{"wide": 2, "thin": 2}},
		{1000, map[string]int{"wide": 2, "thin": 2, "huge": 1}},
	} {
		ranks, cheapest := buy(all, c.budget)
		if !maps.Equal(ranks, c.want) || cheapest != 10 {
			t.Errorf("buy(%d) = %v, %d, want %v, 10", c.budget, ranks, cheapest, c.want)
		}
	}
}
