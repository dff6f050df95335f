package lookup_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/loratool/loratool/internal/lookup"
)

// TestTableFindsWhatWasAdded: every string by its number, the first of two equal ones, and no
// other.
func TestTableFindsWhatWasAdded(t *testing.T) {
	for _, n := range []int{0, 1, 5, 6, 7, 1000, 98304} {
		list := make([]string, n)
		at := func(i int) string { return list[i] }
		table := lookup.New(n)
		for i := range list {
			list[i] = fmt.Sprint("layers.", i, ".weight")
			if twin, isNew := table.Add(list[i], i, at); twin != i || !isNew {
				t.Fatalf("of %d: Add(%q) = %d, %v, want %d, true", n, list[i], twin, isNew, i)
			}
		}
		for i, s := range list {
			if got, ok := table.Find(s, at); got != i || !ok {
				t.Fatalf("of %d: Find(%q) = %d, %v, want %d, true", n, s, got, ok, i)
			}
			if twin, isNew := table.Add(s, 0, at); twin != i || isNew {
				t.Fatalf("of %d: Add(%q) again = %d, %v, want %d, false", n, s, twin, isNew, i)
			}
			if got, ok := table.Find(s+"x", at); ok {
				t.Fatalf("of %d: Find(%q) = %d, want nothing", n, s+"x", got)
			}
		}
	}
}

// TestTableGrows: a table with room for too few strings still finds all of them.
func TestTableGrows(t *testing.T) {
	const n = 10_000
	list := make([]string, n)
	at := func(i int) string { return list[i] }
	table := lookup.New(1)
	for i := range list {
		list[i] = fmt.Sprint("model.layers.", i)
		if got, isNew := table.Add(list[i], i, at); got != i || !isNew {
			t.Fatalf("Add(%q) = %d, %v, want %d, true", list[i], got, isNew, i)
		}
	}
	for i, s := range list {
		if got, ok := table.Find(s, at); got != i || !ok {
			t.Fatalf("Find(%q) = %d, %v, want %d, true", s, got, ok, i)
		}
	}
	if got, ok := table.Find("model.layers", at); ok {
		t.Fatalf("Find of a string that is not there = %d", got)
	}
}

// TestTableTakesTwentyFourBytesAString at most.
func TestTableTakesTwentyFourBytesAString(t *testing.T) {
	const n = 100_000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	table := lookup.New(n)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 24*n {
		t.Errorf("a table of %d strings takes %d bytes, want at most %d", n, got, 24*n)
	}
	if _, ok := table.Find("", nil); ok {
		t.Error("an empty table has a string")
	}
}
