package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// group is a set of items that are alike and whose names differ only in numbers. Its name covers
// exactly its items: model.layers.0–3,8.mlp.up_proj.
type group struct {
	name  string
	first int // the index of the first item
	n     int
}

// groupNames joins the items 0 to n-1 that have an equal key and whose names differ only in
// numbers between dots or underscores, in the order of their first items. A group whose numbers
// are no product of ranges becomes several.
func groupNames(n int, item func(i int) (name, key string)) []group {
	type members struct {
		parts   []string // with "" in place of numbers
		first   int
		n       int
		numbers []int // of all items, one after the other
	}
	byPattern := make(map[string]*members)
	var all []*members
	// There can be hundreds of thousands of items: they share the memory of one.
	var parts []string
	var numbers []int
	var pattern []byte
	for i := range n {
		name, key := item(i)
		parts, numbers = splitNumbers(name, parts[:0], numbers[:0])
		pattern = append(pattern[:0], key...)
		for _, p := range parts { // a number is "", so the pattern has their count
			pattern = append(append(pattern, 0), p...)
		}
		m := byPattern[string(pattern)]
		if m == nil {
			m = &members{parts: slices.Clone(parts), first: i}
			byPattern[string(pattern)] = m
			all = append(all, m)
		}
		m.numbers = append(m.numbers, numbers...)
		m.n++
	}
	var groups []group
	for _, m := range all {
		at, width := m.first, len(m.numbers)/m.n
		lists := make([][]int, m.n)
		for i := range lists {
			lists[i] = m.numbers[i*width : (i+1)*width]
		}
		for _, r := range productsOf(lists) {
			groups = append(groups, group{fillNumbers(m.parts, r.texts), at, r.n})
		}
	}
	return groups
}

// kind is a set of items whose names differ only in numbers, such as the same matrix of all blocks:
// model.layers.*.mlp.up_proj. A kind of one item has its name.
type kind struct {
	name  string
	items []int
}

// kinds sorts the items 0 to n-1 into kinds, in the order of their first items. If the report is
// verbose, each item is a kind.
func (o *common) kinds(n int, name func(i int) string) (all []kind) {
	at := make(map[string]int)
	for i := range n {
		pattern := name(i)
		if parts, _ := splitNumbers(pattern, nil, nil); !o.verbose {
			for k, p := range parts {
				parts[k] = cmp.Or(p, "*")
			}
			pattern = strings.Join(parts, "")
		}
		k, isKnown := at[pattern]
		if !isKnown || o.verbose {
			k = len(all)
			at[pattern], all = k, append(all, kind{name: pattern})
		}
		all[k].items = append(all[k].items, i)
	}
	for k := range all {
		if len(all[k].items) == 1 {
			all[k].name = name(all[k].items[0])
		}
	}
	return all
}

// splitNumbers cuts a name at its dots and underscores, and takes out the parts that are numbers.
// It appends them to numbers and the others to parts, with "" in place of a number. The separators
// stay with the parts that follow them.
func splitNumbers(name string, parts []string, numbers []int) ([]string, []int) {
	for name != "" {
		end := len(name)
		if i := strings.IndexAny(name[1:], "._"); i >= 0 {
			end = i + 1
		}
		part := name[:end]
		name = name[end:]
		digits := strings.TrimLeft(part, "._")
		number, isNumber := plainNumber(digits)
		if !isNumber {
			parts = append(parts, part)
			continue
		}
		if before := part[:len(part)-len(digits)]; before != "" {
			parts = append(parts, before)
		}
		parts = append(parts, "")
		numbers = append(numbers, number)
	}
	return parts, numbers
}

// plainNumber reads a number as strconv.Itoa writes it: not 007, +7 or numbers beyond int. Most
// parts of a name are words, for which strconv.Atoi would make an error each.
func plainNumber(digits string) (number int, ok bool) {
	if digits == "" || digits[0] != '-' && (digits[0] < '0' || digits[0] > '9') {
		return 0, false
	}
	number, err := strconv.Atoi(digits)
	return number, err == nil && (digits == "0" || strings.TrimPrefix(digits, "-")[0] != '0')
}

// fillNumbers puts texts in the places of the numbers that splitNumbers took out.
func fillNumbers(parts, texts []string) string {
	var b strings.Builder
	for _, p := range parts {
		if p == "" && len(texts) > 0 {
			p, texts = texts[0], texts[1:]
		}
		b.WriteString(p)
	}
	return b.String()
}

// product is a set of n lists of numbers: all combinations of one range for each place.
type product struct {
	texts []string
	n     int
}

// productsOf divides lists of numbers of equal length into products: the lists that go on alike
// after their first number share a range of first numbers.
func productsOf(lists [][]int) []product {
	if len(lists) == 0 {
		return nil
	}
	if len(lists[0]) == 0 {
		return []product{{n: len(lists)}}
	}
	if len(lists[0]) == 1 {
		if all := sortedHeads(lists); len(slices.Compact(slices.Clone(all))) == len(all) {
			return []product{{[]string{rangesText(all)}, len(all)}}
		}
	}
	rests := make(map[int][][]int)
	var heads []int
	for _, l := range lists {
		if rests[l[0]] == nil {
			heads = append(heads, l[0])
		}
		rests[l[0]] = append(rests[l[0]], l[1:])
	}
	slices.Sort(heads)
	type tail struct {
		product
		heads []int
	}
	byText := make(map[string]*tail)
	var tails []*tail
	for _, h := range heads {
		for _, p := range productsOf(rests[h]) {
			key := fmt.Sprint(p.n, p.texts)
			if byText[key] == nil {
				byText[key] = &tail{product: p}
				tails = append(tails, byText[key])
			}
			byText[key].heads = append(byText[key].heads, h)
		}
	}
	var all []product
	for _, t := range tails {
		all = append(all, product{append([]string{rangesText(t.heads)}, t.texts...), t.n * len(t.heads)})
	}
	return all
}

// sortedHeads returns the first numbers of lists, sorted.
func sortedHeads(lists [][]int) []int {
	heads := make([]int, len(lists))
	for i, l := range lists {
		heads[i] = l[0]
	}
	slices.Sort(heads)
	return heads
}

// shownRuns is how many runs of numbers a name shows, before it leaves out those in the middle.
const shownRuns = 4

// rangesText writes ascending numbers as runs: 0–3,8. Where there are many runs, "…" stands for
// those between the first ones and the last.
func rangesText(numbers []int) string {
	var runs []string
	for i := 0; i < len(numbers); {
		end := i
		for end+1 < len(numbers) && numbers[end+1] == numbers[end]+1 {
			end++
		}
		run := strconv.Itoa(numbers[i])
		if end > i {
			run += "–" + strconv.Itoa(numbers[end])
		}
		runs = append(runs, run)
		i = end + 1
	}
	if len(runs) > shownRuns {
		runs = append(runs[:shownRuns-2], "…", runs[len(runs)-1])
	}
	return strings.Join(runs, ",")
}
