package arch

import (
	"fmt"
	"go/ast"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// Files call forwards: a package has an order of files in which nearly every file uses only later
// ones. go test ./internal/arch -run FilesCallForward -v prints the order.

// backwardShare is the largest percentage of pairs of files that may call back.
const backwardShare = 10

// fewPairs is the number of pairs below which a package is too small for a percentage.
const fewPairs = 20

// uses lists the pairs of a caller's file and a callee's file in a package, with the names used.
func (p typed) uses() (*graph, map[[2]int][]string) {
	g := &graph{calls: make([]uint64, len(p.files))}
	index := make(map[string]int)
	for i, f := range p.files {
		name := fileOf(f.Pos())
		g.files = append(g.files, name)
		index[name] = i
	}
	names := make(map[[2]int][]string)
	for i, f := range p.files {
		ast.Inspect(f, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			obj := p.info.Uses[id]
			if obj == nil || !isTop(obj, p.types) {
				return true
			}
			j := index[fileOf(obj.Pos())]
			if i == j {
				return true
			}
			g.calls[i] |= 1 << j
			pair := [2]int{i, j}
			if name := nameOf(obj); !slices.Contains(names[pair], name) {
				names[pair] = append(names[pair], name)
			}
			return true
		})
	}
	return g, names
}

func nameOf(obj types.Object) string {
	if f, ok := obj.(*types.Func); ok && f.Signature().Recv() != nil {
		recv := types.TypeString(f.Signature().Recv().Type(), func(*types.Package) string { return "" })
		return strings.TrimPrefix(recv, "*") + "." + f.Name()
	}
	return obj.Name()
}

func TestFilesCallForward(t *testing.T) {
	for _, p := range typedModule(t) {
		g, names := p.uses()
		order := g.order()
		back, pairs := g.back(order), g.pairs()
		logOrder(t, p.room, g, order, names)
		if pairs >= fewPairs && 100*len(back) >= backwardShare*pairs {
			t.Errorf("%s: %d of %d pairs of files go back, want under %d %% (-v prints them)", p.room, len(back), pairs, backwardShare)
		}
	}
}

func logOrder(t *testing.T, room string, g *graph, order []int, names map[[2]int][]string) {
	back, pairs := g.back(order), g.pairs()
	if pairs == 0 {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d of %d pairs go back, %.0f %%:", room, len(back), pairs, 100*float64(len(back))/float64(pairs))
	for _, i := range order {
		fmt.Fprintf(&b, " %s", strings.TrimSuffix(g.files[i], ".go"))
	}
	for _, pair := range back {
		fmt.Fprintf(&b, "\n\t%s uses of %s: %s", g.files[pair[0]], g.files[pair[1]], strings.Join(names[pair], ", "))
	}
	t.Log(b.String())
}

// TestOrderIsTheBest compares the order of small graphs with the best of all orders.
func TestOrderIsTheBest(t *testing.T) {
	for seed := range uint64(40) {
		g := randomGraph(seed, 6)
		want := g.pairs()
		permute([]int{0, 1, 2, 3, 4, 5}, 0, func(order []int) { want = min(want, len(g.back(order))) })
		if got := len(g.back(g.order())); got != want {
			t.Errorf("seed %d: %d pairs go back, want %d", seed, got, want)
		}
		if got := len(g.back(g.orderByMoves([]int{0, 1, 2, 3, 4, 5}))); got != want {
			t.Errorf("seed %d, by moves: %d pairs go back, want %d", seed, got, want)
		}
	}
}

func randomGraph(seed uint64, n int) *graph {
	g := &graph{files: make([]string, n), calls: make([]uint64, n)}
	for i := range n {
		for j := range n {
			seed = seed*6364136223846793005 + 1442695040888963407
			if i != j && seed>>62 == 0 {
				g.calls[i] |= 1 << j
			}
		}
	}
	return g
}

// permute calls f for every order of the elements from k on.
func permute(elements []int, k int, f func([]int)) {
	if k == len(elements) {
		f(elements)
	}
	for i := k; i < len(elements); i++ {
		elements[k], elements[i] = elements[i], elements[k]
		permute(elements, k+1, f)
		elements[k], elements[i] = elements[i], elements[k]
	}
}
