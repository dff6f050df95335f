package main

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// table is a result in columns. On a narrow terminal columns disappear in the order of their drop
// numbers until names have some room; then names are shortened in the middle.
type table struct {
	columns []column
	rows    [][]string
}

// column is a column of a table.
type column struct {
	head    string
	left    bool   // aligned to the left; numbers are aligned at their decimal points
	isName  bool   // its cells may be shortened
	drop    int    // 1 goes first; 0 stays
	meaning string // explained below the table, as long as the column stays
}

// nameWidth is the room for names below which columns disappear: enough for the number of a layer
// and the name of a matrix in it.
const nameWidth = 34

// add adds a row. Text from files is cleaned, so that widths are those on the screen.
func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = clean(c)
	}
	t.rows = append(t.rows, cells)
}

// without takes a column away.
func (t *table) without(i int) {
	t.columns = slices.Delete(t.columns, i, i+1)
	for r, row := range t.rows {
		t.rows[r] = slices.Delete(row, i, i+1)
	}
}

// lines returns the table as lines of at most width characters, as far as the remaining columns
// allow. 0 means any width.
func (t *table) lines(width int) []string {
	t.alignPoints()
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.head)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	keep := t.fit(widths, width)
	var lines []string
	line := func(cell func(i int) string) {
		var b strings.Builder
		for _, i := range keep {
			text := cell(i)
			if t.columns[i].isName {
				text = shorten(text, widths[i])
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if b.Len() > 0 {
				b.WriteString("  ")
			}
			if t.columns[i].left {
				b.WriteString(text + pad)
			} else {
				b.WriteString(pad + text)
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	line(func(i int) string { return t.columns[i].head })
	for _, row := range t.rows {
		line(func(i int) string { return row[i] })
	}
	return append(lines, t.legend(keep, width)...)
}

// alignPoints pads numbers on the right, to align the decimal points of a column.
func (t *table) alignPoints() {
	for i, c := range t.columns {
		if c.left {
			continue
		}
		most := 0
		for _, row := range t.rows {
			most = max(most, fractionWidth(row[i]))
		}
		for _, row := range t.rows {
			row[i] += strings.Repeat(" ", most-fractionWidth(row[i]))
		}
	}
}

// cellNumber is a number in decimal digits, or a bound.
var cellNumber = regexp.MustCompile(`^(?:≤ )?[-+]?[0-9,]+([.][0-9]+)?$`)

// fractionWidth returns the width of a cell from its decimal point on. Other cells, such as 1e-05,
// have none and are aligned at their end.
func fractionWidth(cell string) int {
	m := cellNumber.FindStringSubmatch(cell)
	if m == nil {
		return 0
	}
	return len(m[1])
}

// legend returns the explanation of the columns.
func (t *table) legend(keep []int, width int) []string {
	var all []string
	for _, i := range keep {
		if c := t.columns[i]; c.meaning != "" {
			all = append(all, c.head+": "+c.meaning)
		}
	}
	var hidden []string
	for i, c := range t.columns {
		if !slices.Contains(keep, i) {
			hidden = append(hidden, c.head)
		}
	}
	if len(hidden) > 0 {
		all = append(all, "hidden on a narrow terminal: "+strings.Join(hidden, ", "))
	}
	if len(all) == 0 || len(t.rows) == 0 {
		return nil
	}
	return wrap(strings.Join(all, "; "), cmp.Or(width, proseWidth))
}

// proseWidth is the width of text where no terminal has one.
const proseWidth = 100

// fit returns the indices of the columns that remain, and narrows the columns of names.
func (t *table) fit(widths []int, width int) []int {
	var keep []int
	for i := range t.columns {
		keep = append(keep, i)
	}
	for {
		sum, drop, name := 2*(len(keep)-1), -1, -1
		for _, i := range keep {
			sum += widths[i]
			if d := t.columns[i].drop; d > 0 && (drop < 0 || d < t.columns[drop].drop) {
				drop = i
			}
			if t.columns[i].isName {
				name = i
			}
		}
		over := sum - width
		if width == 0 || over <= 0 {
			return keep
		}
		if drop < 0 || name >= 0 && widths[name]-over >= nameWidth {
			if name >= 0 {
				widths[name] = max(widths[name]-over, utf8.RuneCountInString(t.columns[name].head), 3)
			}
			return keep
		}
		keep = slices.DeleteFunc(keep, func(i int) bool { return i == drop })
	}
}

// shorten removes characters from the middle of a name. It keeps more of the end, which tells names
// apart.
func shorten(name string, width int) string {
	runes := []rune(name)
	if len(runes) <= width {
		return name
	}
	head := width / 8
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-head-1):])
}

// print prints a table as wide as the terminal is.
func (t *terminal) print(tab *table) {
	for _, line := range tab.lines(t.width()) {
		line = clean(line)
		if t.hasColour(t.out.w) {
			line = bars.ReplaceAllString(line, cyan+"$0"+plain)
		}
		t.out.WriteString(line + "\n")
	}
}

// The colours of a terminal, ECMA-48.
const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	plain  = "\x1b[0m"

	eraseRight = "\x1b[K" // from the cursor to the end of the line
)

// kindColours are the colours of the kinds of messages.
var kindColours = map[string]string{"error": red, "warning": yellow, "hint": cyan}

// bars are the characters of sparkline.
var bars = regexp.MustCompile("[▁▂▃▄▅▆▇█]+")
