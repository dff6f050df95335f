package main

import (
	"fmt"
	"strings"
)

// unknown is the error for a name that is none of those that are known.
func unknown(what, name string, known []string, hint string) error {
	if near := nearest(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return usagef(hint, "unknown %s %q", what, name)
}

// nearest is the known name that takes the fewest edits to make of name, at most one in three
// letters; "" where all are farther.
func nearest(name string, known []string) string {
	best, least := "", (len(strings.TrimLeft(name, "-"))+2)/3+1
	for _, k := range known {
		if d := edits(strings.TrimLeft(name, "-"), strings.TrimLeft(k, "-")); d < least {
			best, least = k, d
		}
	}
	return best
}

// edits counts the letters that are inserted, left out, exchanged or swapped with their neighbour
// to make b of a (optimal string alignment).
func edits(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range len(b) {
		d[0][j+1] = j + 1
	}
	for i := range len(a) {
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			d[i+1][j+1] = min(d[i][j+1]+1, d[i+1][j]+1, d[i][j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
