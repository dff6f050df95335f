package format

import "sync"

// cache keeps the chunks decoded last. It has a fixed number of shelves. A reader whose chunk is
// missing takes the shelf that has been idle longest, and waits if all are in use.
type cache struct {
	file    *Reader
	decoder *decoder

	mu      sync.Mutex
	changed sync.Cond // a shelf was filled or released
	shelf   []shelf
	clock   int64
}

type shelf struct {
	room
	chunk  int64 // the chunk on the shelf, −1 for none
	users  int
	filled bool
	err    error // why it could not be filled
	used   int64 // when it was released last
}

func newCache(file *Reader, n int) *cache {
	c := &cache{file: file, decoder: newDecoder(n), shelf: make([]shelf, n)}
	c.changed.L = &c.mu
	for i := range c.shelf {
		c.shelf[i].chunk = -1
	}
	return c
}

// read copies bytes of chunk i from offset off to p and returns how many it copied.
func (c *cache) read(p []byte, i, off int64, w *window) (int, error) {
	s := c.take(i, w)
	defer c.leave(s)
	if s.err != nil {
		return 0, s.err
	}
	return copy(p, s.raw[off:]), nil
}

// take returns the shelf with chunk i, filled or with an error. It stays valid until leave.
func (c *cache) take(i int64, w *window) *shelf {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		free := -1
		for k := range c.shelf {
			s := &c.shelf[k]
			if s.chunk == i {
				s.users++
				for !s.filled {
					c.changed.Wait()
				}
				return s
			}
			if s.users == 0 && (free < 0 || s.used < c.shelf[free].used) {
				free = k
			}
		}
		if free >= 0 {
			s := &c.shelf[free]
			s.chunk, s.users, s.filled = i, 1, false
			c.mu.Unlock()
			s.grow(c.file.plan.largest)
			err := c.file.readChunk(&s.room, c.decoder, i, w)
			c.mu.Lock()
			s.filled, s.err = true, err
			c.changed.Broadcast()
			return s
		}
		c.changed.Wait()
	}
}

func (c *cache) leave(s *shelf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	s.users--
	s.used = c.clock
	if s.err != nil && s.users == 0 {
		s.chunk, s.err, s.used = -1, nil, 0 // the next attempt may succeed
	}
	c.changed.Broadcast()
}

func (c *cache) close() { c.decoder.close() }
