// Package lookup finds strings by their place in a list. A model can have hundreds of thousands of
// tensors, and several parts of the program look for them by name; a map for each would take more
// memory than the tensors.
package lookup

import "hash/maphash"

// Table finds strings of a list. It holds numbers of the list only, 8 bytes in a slot, and asks its
// owner for the strings. Any number of goroutines may call Find at once.
type Table struct {
	seed  maphash.Seed
	slots []slot // a power of two of them
	n     int    // those in use, three quarters at most
}

// slot is 1 + the number of a string, 0 for none. Parts of the hash tell most strings apart without
// a look at them.
type slot struct{ number, hash uint32 }

// New returns an empty table with room for n strings. It grows if there are more.
func New(n int) *Table {
	size := 8
	for size*3 < n*4 {
		size *= 2
	}
	return &Table{seed: maphash.MakeSeed(), slots: make([]slot, size)}
}

// Find returns the number of a string. at returns the string of a number in the table.
func (t *Table) Find(s string, at func(i int) string) (i int, ok bool) {
	found, _ := t.slot(s, at)
	return int(found.number) - 1, found.number > 0
}

// Add gives a string the number i. If the table has the string, Add leaves it as it is and returns
// its number.
func (t *Table) Add(s string, i int, at func(i int) string) (twin int, isNew bool) {
	found, hash := t.slot(s, at)
	if found.number > 0 {
		return int(found.number) - 1, false
	}
	if 4*(t.n+1) > 3*len(t.slots) {
		t.grow(at)
		found, hash = t.slot(s, at)
	}
	*found = slot{uint32(i) + 1, hash}
	t.n++
	return i, true
}

// grow doubles the number of slots.
func (t *Table) grow(at func(i int) string) {
	old := t.slots
	t.slots = make([]slot, 2*len(old))
	for _, x := range old {
		if x.number > 0 {
			found, _ := t.slot(at(int(x.number)-1), at)
			*found = x
		}
	}
}

// slot returns the slot of a string, or the free one where it belongs, and the string's hash.
func (t *Table) slot(s string, at func(i int) string) (found *slot, hash uint32) {
	whole := maphash.String(t.seed, s)
	hash = uint32(whole >> 32)
	for i := int(uint32(whole)); ; i++ {
		found = &t.slots[i&(len(t.slots)-1)]
		if found.number == 0 || found.hash == hash && at(int(found.number)-1) == s {
			return found, hash
		}
	}
}
