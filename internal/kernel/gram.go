package kernel

// Lines are rows or columns of a matrix. Element k of line i is Data[i·Apart + k·Next], and Apart
// or Next is 1.
type Lines struct {
	Data          []float32
	Count, Length int
	Apart, Next   int
}

// Gram multiplies by a thin matrix, and back. Its memory serves one product after the other; the
// zero value is ready to use.
type Gram struct {
	panel []float32
	sums  []float64
}

// GramLines is the number of lines that are copied and used together: each is read from far memory
// once for both products.
const GramLines = thinRun

// RoundUp returns the least multiple of thinSide that is not less than n.
func RoundUp(n int) int { return (n + thinSide - 1) / thinSide * thinSide }

// Add writes L·X to y, where L are the lines as rows, and adds Lᵀ·(L·X) to z. X has Length rows of
// b elements, y has Count, and z RoundUp(Length), all row-major and contiguous; b is a multiple of
// thinSide. Runs of thinRun elements are summed in float32, and the runs in float64. y is rounded
// to float32 before it is used.
func (g *Gram) Add(y []float32, z []float64, l Lines, x []float32, b int) {
	for first := 0; first < l.Count; first += GramLines {
		part := l
		part.Data, part.Count = l.Data[first*l.Apart:], min(GramLines, l.Count-first)
		g.addPanel(y[first*b:(first+part.Count)*b], z, g.copy(part), x, b)
	}
}

// copy copies up to GramLines lines, with a distance that is no power of two. Otherwise their
// elements share one set of the first-level cache, which holds eight of them. Lines and elements
// are completed with zeros to multiples of thinSide.
func (g *Gram) copy(l Lines) Lines {
	const more = 2 * thinSide
	p := Lines{Count: l.Count, Length: l.Length, Apart: 1, Next: 1}
	count, length := RoundUp(l.Count), RoundUp(l.Length)
	inner, nInner, outer, nOuter, far := l.Count, count, l.Length, length, l.Next
	if l.Next == 1 {
		inner, nInner, outer, nOuter, far = l.Length, length, l.Count, count, l.Apart
		p.Apart = nInner + more
	} else {
		p.Next = nInner + more
	}
	step := nInner + more
	if len(g.panel) < nOuter*step {
		g.panel = make([]float32, nOuter*step)
	}
	p.Data = g.panel
	for i := range outer {
		to := p.Data[i*step:][:nInner]
		copy(to, l.Data[i*far:][:inner])
		clear(to[inner:])
	}
	clear(p.Data[outer*step : nOuter*step])
	return p
}

// addPanel is Add for lines that copy has made.
func (g *Gram) addPanel(y []float32, z []float64, l Lines, x []float32, b int) {
	count, length := RoundUp(l.Count), RoundUp(l.Length)
	if len(g.sums) < count*b {
		g.sums = make([]float64, GramLines*b)
	}
	sums := g.sums[:count*b]
	clear(sums)
	for k := 0; k < l.Length; k += thinRun {
		run := min(thinRun, l.Length-k)
		for i := 0; i < count; i += thinSide {
			for c := 0; c < b; c += thinSide {
				addThin(sums[i*b+c:], b, l.Data[i*l.Apart+k*l.Next:], l.Next, l.Apart, x[k*b+c:], b, run)
			}
		}
	}
	for i := range y {
		y[i] = float32(sums[i])
	}
	for k := 0; k < length; k += thinSide {
		for c := 0; c < b; c += thinSide {
			addThin(z[k*b+c:], b, l.Data[k*l.Next:], l.Apart, l.Next, y[c:], b, l.Count)
		}
	}
}
