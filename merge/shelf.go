package merge

import (
	"slices"
	"sync"

	"github.com/loratool/loratool/internal/resolve"
)

// shelf keeps tensors of adapters that several bands or targets need a part of, such as the factors of stacked experts, as they are
// stored: from the first that reads one to the last.
type shelf struct {
	lock  sync.Mutex
	books map[resolve.Blob]*book
}

type book struct {
	uses int // bands to go
	once sync.Once
	raw  []byte
	err  error
}

// newShelf counts who needs what.
func newShelf(targets []*target) *shelf {
	s := &shelf{books: make(map[resolve.Blob]*book)}
	for _, t := range targets {
		for band := range t.NBands {
			for _, b := range t.blobs(band) {
				if s.books[b] == nil {
					s.books[b] = new(book)
				}
				s.books[b].uses++
			}
		}
	}
	for b, k := range s.books {
		if k.uses == 1 {
			delete(s.books, b)
		}
	}
	return s
}

// blobs lists the tensors that a band needs a part of, each once.
func (t *target) blobs(band int) []resolve.Blob {
	var all []resolve.Blob
	add := func(terms []resolve.Term) {
		for i := range terms {
			if terms[i].Band != band {
				continue
			}
			for _, f := range []*resolve.Factor{&terms[i].Left, &terms[i].Right} {
				if f.Source != nil && !slices.Contains(all, f.Blob) {
					all = append(all, f.Blob)
				}
			}
		}
	}
	add(t.Terms)
	for i := range t.undo {
		add(t.undo[i].terms)
	}
	return all
}

// take returns the bytes of a tensor that is kept, or nil if it is not.
func (s *shelf) take(b resolve.Blob) ([]byte, error) {
	s.lock.Lock()
	k := s.books[b]
	s.lock.Unlock()
	if k == nil {
		return nil, nil
	}
	k.once.Do(func() {
		k.raw = make([]byte, b.Tensor().NBytes())
		k.err = b.Source.ReadBlobAt(k.raw, b.Index, 0)
	})
	return k.raw, k.err
}

// drop gives back what a band needed.
func (s *shelf) drop(t *target, band int) {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, b := range t.blobs(band) {
		if k := s.books[b]; k != nil {
			if k.uses--; k.uses == 0 {
				delete(s.books, b)
			}
		}
	}
}
