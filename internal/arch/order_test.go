package arch

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// graph records the calls between files: calls[i] has a bit for every file that file i uses. A
// package has at most 64 files.
type graph struct {
	files []string
	calls []uint64
}

func (g *graph) pairs() (n int) {
	for _, c := range g.calls {
		n += bits.OnesCount64(c)
	}
	return n
}

// back returns the backward pairs of an order: the callee stands above the caller.
func (g *graph) back(order []int) (pairs [][2]int) {
	above := uint64(0)
	for _, i := range order {
		for callees := g.calls[i] & above; callees != 0; callees &= callees - 1 {
			pairs = append(pairs, [2]int{i, bits.TrailingZeros64(callees)})
		}
		above |= 1 << i
	}
	return pairs
}

// order sorts the files so that few pairs go back. The number is minimal unless more than
// exactLimit files form a cycle.
func (g *graph) order() (order []int) {
	for _, circle := range g.circles() {
		if len(circle) <= exactLimit {
			order = append(order, g.orderExactly(circle)...)
		} else {
			order = append(order, g.orderByMoves(circle)...)
		}
	}
	return order
}

// exactLimit is the largest number of files whose subsets are all examined.
const exactLimit = 18

// circles returns the strongly connected components, callers first, from the files that each file
// reaches.
func (g *graph) circles() (all [][]int) {
	n := len(g.files)
	reach := make([]uint64, n)
	for i := range reach {
		reach[i] = g.calls[i] | 1<<i
	}
	for k := range n { // Warshall's algorithm
		for i := range n {
			if reach[i]>>k&1 == 1 {
				reach[i] |= reach[k]
			}
		}
	}
	left := uint64(1)<<n - 1
	for left != 0 {
		for i := range n {
			if left>>i&1 == 0 || g.isReachedFrom(left&^reach[i], i, reach) {
				continue
			}
			var circle []int
			for j := range n {
				if left>>j&1 == 1 && reach[i]>>j&1 == 1 && reach[j]>>i&1 == 1 {
					circle = append(circle, j)
					left &^= 1 << j
				}
			}
			all = append(all, circle)
			break
		}
	}
	return all
}

// isReachedFrom reports whether one of the files reaches file i.
func (g *graph) isReachedFrom(files uint64, i int, reach []uint64) bool {
	for ; files != 0; files &= files - 1 {
		if reach[bits.TrailingZeros64(files)]>>i&1 == 1 {
			return true
		}
	}
	return false
}

// orderExactly finds, for each subset of the files, the cheapest order with the subset on top.
// Adding a file below costs one per call from it into the subset.
func (g *graph) orderExactly(files []int) []int {
	n := len(files)
	calls := make([]uint32, n)
	for i, f := range files {
		for j, to := range files {
			calls[i] |= uint32(g.calls[f]>>to&1) << j
		}
	}
	cost := make([]uint16, 1<<n)
	last := make([]uint8, 1<<n)
	for set := 1; set < 1<<n; set++ {
		cost[set] = ^uint16(0)
		for rest := uint32(set); rest != 0; rest &= rest - 1 {
			i := bits.TrailingZeros32(rest)
			above := set &^ (1 << i)
			if c := cost[above] + uint16(bits.OnesCount32(calls[i]&uint32(above))); c < cost[set] {
				cost[set], last[set] = c, uint8(i)
			}
		}
	}
	order := make([]int, n)
	for set, k := 1<<n-1, n-1; k >= 0; k-- {
		order[k] = files[last[set]]
		set &^= 1 << last[set]
	}
	return order
}

// orderByMoves moves single files to their best places until no move helps, from many starts.
func (g *graph) orderByMoves(files []int) (best []int) {
	fewest := -1
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		order := slices.Clone(files)
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		now := len(g.back(order))
		for improved := true; improved; {
			improved = false
			for from := range order {
				for to := range order {
					moved := slices.Insert(slices.Delete(slices.Clone(order), from, from+1), to, order[from])
					if n := len(g.back(moved)); n < now {
						order, now, improved = moved, n, true
					}
				}
			}
		}
		if fewest < 0 || now < fewest {
			best, fewest = order, now
		}
	}
	return best
}
