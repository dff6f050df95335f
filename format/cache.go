package format

import "sync"

// cache keeps the decoded chunks that were used last. It has a fixed number of rooms: who needs a
// chunk that is not there takes the room that was unused for longest, and waits if all are in use.
type cache struct {
	file    *Reader
	decoder *decoder

	mu      sync.Mutex
	changed sync.Cond // a room was filled or left
	shelf   []shelf
	clock   int64
}

type shelf struct {
	room
	chunk  int64 // the chunk in the cache, −1 for none
	users  int
	filled bool
	err    error // of the attempt to fill it
	used   int64 // when
}

func newCache(file *Reader, n int) *cache {
	c := &cache{file: file, decoder: newDecoder(n), shelf: make([]shelf, n)}
	c.changed.L = &c.mu
	for i := range c.shelf {
		c.shelf[i].chunk = -1
	}
	return c
}

// read copies bytes of chunk i, from off, to p, and returns how many there were.
func (c *cache) read(p []byte, i, off int64) (int, error) {
	s := c.take(i)
	defer c.leave(s)
	if s.err != nil {
		return 0, s.err
	}
	return copy(p, s.raw[off:]), nil
}

// take returns the shelf of chunk i, filled or with an error, until leave is called.
func (c *cache) take(i int64) *shelf {
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
			err := c.file.readChunk(&s.room, c.decoder, i)
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
