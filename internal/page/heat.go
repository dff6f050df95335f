package page

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// grid gives every layer a place: blocks of the model are rows, and the modules within a block
// columns.
type grid struct {
	corner  string
	rows    []string // names of blocks, without the part that all have
	columns []string
	cells   [][]int // indexes of layers, -1 for none
}

// heatMap is a table with coloured cells.
type heatMap struct {
	Name, Meaning string
	Corner        string
	Columns       []string
	Rows          []heatRow
	Least, Most   string
	Legend        []string // classes of cells from the least to the most
	IsLog, IsText bool
}

type heatRow struct {
	Name  string
	Cells []heatCell
}

// heatCell is the value of a layer. An empty class means that the layer has none.
type heatCell struct {
	Class, Text string
	Layer       int
}

// newGrid places layers by their names. It returns nil if most places would be empty.
func newGrid(names []string) *grid {
	split := splitter(names)
	blocks, parts := make([]string, len(names)), make([]string, len(names))
	for i, name := range names {
		blocks[i], parts[i] = split(name)
	}
	g := &grid{rows: distinct(blocks), columns: distinct(parts)}
	slices.SortStableFunc(g.rows, compareNatural)
	if len(names) == 0 || len(g.rows)*len(g.columns) > 4*len(names)+100 {
		return nil
	}
	row, column := indexes(g.rows), indexes(g.columns)
	g.cells = make([][]int, len(g.rows))
	for i := range g.cells {
		g.cells[i] = slices.Repeat([]int{-1}, len(g.columns))
	}
	for i := range names {
		g.cells[row[blocks[i]]][column[parts[i]]] = i
	}
	g.shorten()
	return g
}

// shorten takes the beginning that all names have from the names of rows and columns, and the end
// that all columns have, such as .weight.
func (g *grid) shorten() {
	named := slices.DeleteFunc(slices.Clone(g.rows), func(name string) bool { return name == "" })
	common := commonStart(named)
	g.corner = "module"
	if common != "" || len(named) > 0 {
		g.corner = common + "*"
	}
	for i, name := range g.rows {
		if g.rows[i] = strings.TrimPrefix(name, common); name == "" {
			g.rows[i] = "outside"
		}
	}
	start, end := commonStart(g.columns), commonEnd(g.columns)
	for i := range g.columns {
		g.columns[i] = strings.TrimSuffix(strings.TrimPrefix(g.columns[i], start), end)
	}
}

// commonEnd is the last part of the names from its dot on, if all have the same one and more.
func commonEnd(names []string) string {
	end := ""
	for i, name := range names {
		at := strings.LastIndexByte(name, '.')
		if at <= 0 || i > 0 && name[at:] != end {
			return ""
		}
		end = name[at:]
	}
	if len(names) < 2 {
		return ""
	}
	return end
}

// splitter returns a function that cuts the names of layers in two: the block, which ends in a
// number, and the module in it. The block is the longest one with several modules.
func splitter(names []string) func(name string) (block, part string) {
	parts := make(map[string]map[string]bool)
	for _, name := range names {
		for _, at := range cuts(name) {
			if parts[name[:at]] == nil {
				parts[name[:at]] = make(map[string]bool)
			}
			parts[name[:at]][name[at+1:]] = true
		}
	}
	return func(name string) (block, part string) {
		all := cuts(name)
		for _, at := range slices.Backward(all) {
			if len(parts[name[:at]]) > 1 {
				return name[:at], name[at+1:]
			}
		}
		if len(all) == 0 {
			return "", name
		}
		at := all[len(all)-1]
		return name[:at], name[at+1:]
	}
}

// cuts lists the places of a name after a number, where a separator and more follow.
func cuts(name string) (all []int) {
	start := 0
	for i := 0; i < len(name); i++ {
		if name[i] != '.' && name[i] != '_' {
			continue
		}
		if _, err := strconv.ParseUint(name[start:i], 10, 32); err == nil && i+1 < len(name) {
			all = append(all, i)
		}
		start = i + 1
	}
	return all
}

func distinct(names []string) (all []string) {
	seen := make(map[string]bool)
	for _, name := range names {
		if !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return all
}

func indexes(names []string) map[string]int {
	at := make(map[string]int, len(names))
	for i, name := range names {
		at[name] = i
	}
	return at
}

// commonStart is the longest beginning that ends with a separator and that all names have. It is
// never a whole name.
func commonStart(names []string) string {
	if len(names) == 0 {
		return ""
	}
	start := names[0]
	for _, name := range names {
		for !strings.HasPrefix(name, start) {
			start = start[:len(start)-1]
		}
	}
	return start[:strings.LastIndexAny(start, "._")+1]
}

// compareNatural compares names so that 9 comes before 10.
func compareNatural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x == "" || y == "" {
			if a[0] != b[0] {
				return int(a[0]) - int(b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		m, n := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if len(m) != len(n) {
			return len(m) - len(n)
		}
		if m != n {
			return strings.Compare(m, n)
		}
		a, b = a[len(x):], b[len(y):]
	}
	return len(a) - len(b)
}

// digits is the number at the beginning of a text.
func digits(text string) string { return text[:len(text)-len(strings.TrimLeft(text, "0123456789"))] }

// levels is the number of shades of a heat map.
const levels = 10

// logFrom is the ratio of the largest to the smallest value from which shades are logarithmic.
const logFrom = 30

// sameBelow is the relative range below which all values have one shade: cells show fewer digits.
const sameBelow = 1e-4

// draw makes a heat map of the values of all layers. It returns nil if the layers have no grid, or
// no values. Shares have shades from 0 to 1, whatever their range.
func (g *grid) draw(name, meaning string, values []float64, areShares bool) *heatMap {
	s := newShades(values)
	if areShares && s != nil {
		s = &shades{min(0, math.Floor(s.least)), 1, false}
	}
	if g == nil || s == nil {
		return nil
	}
	text := formatOf(values, 3)
	m := g.fill(name, meaning, func(layer int) (class, shown string) {
		if v := values[layer]; v-v == 0 {
			return s.class(v), text(v)
		}
		return "", ""
	})
	m.Least, m.Most, m.IsLog, m.Legend = text(s.least), text(s.most), s.isLog, s.legend()
	return m
}

// fill makes a heat map of the cells of all layers, without a legend.
func (g *grid) fill(name, meaning string, cell func(layer int) (class, text string)) *heatMap {
	m := &heatMap{Name: name, Meaning: meaning, Corner: g.corner, Columns: g.columns}
	for i, row := range g.cells {
		r := heatRow{Name: g.rows[i]}
		for _, layer := range row {
			c := heatCell{Layer: layer}
			if layer >= 0 {
				c.Class, c.Text = cell(layer)
			}
			r.Cells = append(r.Cells, c)
		}
		m.Rows = append(m.Rows, r)
	}
	return m
}

// lineParts cuts a name where a line may break: after dots, or else after underscores.
func lineParts(name string) []string {
	if strings.Contains(name, ".") {
		return strings.SplitAfter(name, ".")
	}
	return strings.SplitAfter(name, "_")
}

// shades maps values to classes of cells: h0 to h9, and m1 to m9 below zero.
type shades struct {
	least, most float64
	isLog       bool
}

// newShades fits shades to the finite values, and returns nil if there are none.
func newShades(values []float64) *shades {
	s := &shades{math.Inf(1), math.Inf(-1), false}
	positive := true
	for _, v := range values {
		if v-v == 0 {
			s.least, s.most = min(s.least, v), max(s.most, v)
			positive = positive && v > 0
		}
	}
	if s.least > s.most {
		return nil
	}
	if s.most-s.least < sameBelow*max(s.most, -s.least) {
		s.least = s.most
	}
	s.isLog = positive && s.most > logFrom*s.least
	return s
}

func (s *shades) class(v float64) string {
	level := func(share float64) string {
		return strconv.Itoa(max(0, min(levels-1, int(math.Round(share*(levels-1))))))
	}
	switch {
	case s.least < 0 && v < 0: // two colours, from zero
		if l := level(-v / max(-s.least, s.most)); l != "0" {
			return "m" + l
		}
		return "h0"
	case s.least < 0:
		return "h" + level(v/max(-s.least, s.most))
	case s.most == s.least:
		return "h3"
	case s.isLog:
		return "h" + level(math.Log(v/s.least)/math.Log(s.most/s.least))
	}
	return "h" + level((v-s.least)/(s.most-s.least))
}

// legend lists classes from the least value to the most.
func (s *shades) legend() (all []string) {
	const steps = 2 * levels
	for i := range steps + 1 {
		share := float64(i) / steps
		v := s.least + share*(s.most-s.least)
		if s.isLog {
			v = s.least * math.Pow(s.most/s.least, share)
		}
		if c := s.class(v); len(all) == 0 || all[len(all)-1] != c {
			all = append(all, c)
		}
	}
	return all
}
