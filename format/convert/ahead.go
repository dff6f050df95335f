package convert

import (
	"sync"

	"github.com/loratool/loratool/internal/fileio"
)

// ahead reads a file of weights in pieces for callers that want small tensors in roughly the order
// of the file, such as those of an adapter with tens of thousands of layers: a system call for each
// would take longer than its bytes.
type ahead struct {
	lock    sync.Mutex
	windows [aheadWindows]stretch
	turn    int // the window to reuse next
}

// stretch is a piece of the file. A read that begins in it, or a little after it, goes on from
// there and fetches aheadBytes; any other read fetches its own bytes only.
type stretch struct {
	off   int64
	bytes []byte
}

const (
	// aheadBytes is the size of a piece. Reads of more than a quarter of it go to the file.
	aheadBytes = 32 << 10
	// aheadWindows is the number of places in the file that are read at the same time, such as all
	// A and all B for several workers.
	aheadWindows = 8
)

// readFull fills p with the bytes of the file from offset off. Several goroutines may call it at
// once: those that wait mostly want the piece that another one fetches.
func (a *ahead) readFull(f *fileio.Input, p []byte, off int64) error {
	if len(p) > aheadBytes/4 {
		return readFull(f, p, off)
	}
	a.lock.Lock()
	defer a.lock.Unlock()
	n := int64(len(p))
	for i := range a.windows {
		if w := &a.windows[i]; w.off <= off && off+n <= w.end() {
			copy(p, w.bytes[off-w.off:])
			return nil
		}
	}
	for i := range a.windows {
		if w := &a.windows[i]; w.bytes != nil && w.off <= off && off <= w.end()+aheadBytes {
			return w.read(f, p, off, max(n, min(aheadBytes, f.Size-off)))
		}
	}
	w := &a.windows[a.turn]
	a.turn = (a.turn + 1) % aheadWindows
	return w.read(f, p, off, n)
}

func (w *stretch) end() int64 { return w.off + int64(len(w.bytes)) }

// read moves the window to n bytes from offset off, and fills p with the first of them.
func (w *stretch) read(f *fileio.Input, p []byte, off, n int64) error {
	if int64(cap(w.bytes)) < n {
		w.bytes = make([]byte, n)
	}
	piece := w.bytes[:n]
	w.off, w.bytes = off, piece[:0] // empty after an error
	if err := readFull(f, piece, off); err != nil {
		return err
	}
	w.bytes = piece
	copy(p, piece)
	return nil
}
