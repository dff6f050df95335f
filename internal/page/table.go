package page

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// table is a table of all layers, the heat maps of some of its columns, and the details of each
// layer.
type table struct {
	Columns []column
	Layers  []layer
	Maps    []heatMap
	Data    data
	grid    *grid
}

// column is the head of a column.
type column struct {
	Name, Meaning string
	IsNumber      bool
}

// layer is a row.
type layer struct {
	Name  string
	Cells []cell
	Spark *spark
}

// cell is a value of a layer, as text.
type cell struct {
	Text     string
	IsNumber bool
}

// data is the part of a page that its script reads.
type data struct {
	Sigma  []numbers   `json:"sigma,omitempty"`  // singular values of each layer, descending
	Values []int       `json:"values,omitempty"` // how many there are, also of those left out
	Norm   numbers     `json:"norm,omitempty"`   // ‖Δ‖_F
	Phi    [][]numbers `json:"phi,omitempty"`    // φ(i, j)
}

// numbers are rounded to four digits in a page. NaN and infinity become null.
type numbers []float64

// MarshalJSON implements json.Marshaler.
func (x numbers) MarshalJSON() ([]byte, error) {
	if x == nil {
		return []byte("null"), nil
	}
	text := []byte{'['}
	for i, v := range x {
		if i > 0 {
			text = append(text, ',')
		}
		if v-v != 0 {
			text = append(text, "null"...)
			continue
		}
		text = strconv.AppendFloat(text, v, 'g', 4, 64)
	}
	return append(text, ']'), nil
}

var _ json.Marshaler = numbers(nil)

// newTable begins the table of n layers.
func newTable(n int, name func(i int) string) table {
	t := table{Layers: make([]layer, n)}
	names := make([]string, n)
	for i := range n {
		names[i] = name(i)
		t.Layers[i].Name = names[i]
	}
	t.grid = newGrid(names)
	return t
}

// text adds a column of texts.
func (t *table) text(name, meaning string, value func(i int) string) {
	t.add(column{Name: name, Meaning: meaning}, value)
}

// count adds a column of whole numbers; a negative one means that the layer has none.
func (t *table) count(name, meaning string, value func(i int) int) {
	t.add(column{name, meaning, true}, func(i int) string {
		if n := value(i); n >= 0 {
			return strconv.Itoa(n)
		}
		return ""
	})
}

// number adds a column of numbers; NaN means that the layer has none.
func (t *table) number(name, meaning string, value func(i int) float64) {
	text := formatOf(t.values(value), 4)
	t.add(column{name, meaning, true}, func(i int) string { return text(value(i)) })
}

// values returns the value of each layer.
func (t *table) values(value func(i int) float64) []float64 {
	all := make([]float64, len(t.Layers))
	for i := range all {
		all[i] = value(i)
	}
	return all
}

// add adds a column, if any layer has a value.
func (t *table) add(c column, value func(i int) string) {
	texts := make([]string, len(t.Layers))
	for i := range texts {
		texts[i] = value(i)
	}
	if !slices.ContainsFunc(texts, func(text string) bool { return text != "" }) {
		return
	}
	t.Columns = append(t.Columns, c)
	for i, text := range texts {
		t.Layers[i].Cells = append(t.Layers[i].Cells, cell{text, c.IsNumber})
	}
}

// heat adds a heat map of numbers.
func (t *table) heat(name, meaning string, value func(i int) float64) {
	if m := t.grid.draw(name, meaning, t.values(value), false); m != nil {
		t.Maps = append(t.Maps, *m)
	}
}

// heatOfStates adds a heat map of texts, whose class of cell says how bad they are: one of bad, the
// first of which is good.
func (t *table) heatOfStates(name, meaning string, bad []string, least, most string, state func(i int) (class, text string)) {
	if t.grid == nil {
		return
	}
	m := t.grid.fill(name, meaning, state)
	m.IsText, m.Legend, m.Least, m.Most = true, bad, least, most
	t.Maps = append(t.Maps, *m)
}

// heatOfShares adds a heat map of numbers between 0 and 1, or −1 and 1.
func (t *table) heatOfShares(name, meaning string, value func(i int) float64) {
	if m := t.grid.draw(name, meaning, t.values(value), true); m != nil {
		t.Maps = append(t.Maps, *m)
	}
}

// columnsBeside is the most columns of a map that has another one beside it.
const columnsBeside = 8

// HasWideMaps reports whether each map has the whole width.
func (t *table) HasWideMaps() bool {
	return len(t.Maps) > 0 && len(t.Maps[0].Columns) > columnsBeside
}

const (
	// mostValues is how many singular values a page holds of all layers together.
	mostValues = 40000
	// leastValues is how many of them each layer may have, all the same.
	leastValues = 16
)

// spectra adds the singular values of each layer, nil for a layer without, and its ‖Δ‖_F.
func (t *table) spectra(value func(i int) (sigma []float64, norm float64)) {
	kept := max(leastValues, mostValues/max(len(t.Layers), 1))
	d := data{Sigma: make([]numbers, len(t.Layers)), Values: make([]int, len(t.Layers)), Norm: make(numbers, len(t.Layers))}
	hasAny := false
	for i := range t.Layers {
		sigma, norm := value(i)
		if d.Norm[i] = norm; len(sigma) == 0 {
			continue
		}
		hasAny = true
		d.Sigma[i], d.Values[i] = sigma[:min(len(sigma), kept)], len(sigma)
		t.Layers[i].Spark = newSpark(sigma)
	}
	if hasAny {
		t.Data = d
	}
}

// mostDirections is how many directions of a similarity a page shows.
const mostDirections = 16

// similarities adds φ(i, j) of each layer.
func (t *table) similarities(value func(i int) [][]float64) {
	for i := range t.Layers {
		phi := value(i)
		shown := make([]numbers, 0, len(phi))
		for _, row := range phi[:min(len(phi), mostDirections)] {
			shown = append(shown, row[:min(len(row), mostDirections)])
		}
		t.Data.Phi = append(t.Data.Phi, shown)
	}
}

// HasDetail reports whether a layer can be selected.
func (t *table) HasDetail() bool { return t.Data.Sigma != nil || t.Data.Phi != nil }

// HasSparks reports whether layers have small pictures of their spectra.
func (t *table) HasSparks() bool { return t.Data.Sigma != nil }

// Explained lists the columns whose names need a word.
func (t *table) Explained() (all []Fact) {
	for _, c := range t.Columns {
		if c.Meaning != "" {
			all = append(all, Fact{c.Name, c.Meaning})
		}
	}
	return all
}

// spark is a small picture of a spectrum: a bar for each singular value, or for the largest of a
// group where there are many.
type spark struct {
	Width int
	Path  string
}

// sparkBars is the most bars of a picture, and sparkHeight is its height.
const (
	sparkBars   = 16
	sparkHeight = 12
)

func newSpark(sigma []float64) *spark {
	if sigma[0] <= 0 {
		return nil
	}
	n := min(len(sigma), sparkBars)
	var path strings.Builder
	for i := range n {
		v := sigma[i*len(sigma)/n] / sigma[0]
		fmt.Fprintf(&path, "M%d 12V%.3g", 3*i+1, sparkHeight*(1-max(v, 0.05)))
	}
	return &spark{3 * n, path.String()}
}
