package merge

import (
	"io"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// operation is one step of what happens to the rows of a tensor. The operations of a tensor run one
// after the other on each block of its rows: restore or subtract what is taken out, replace, add or
// rescale, set rows. To merge is a list of them, to unmerge is the list of their inverses, and a
// swap is one after the other.
type operation interface {
	// load reads what the operation needs for a band, before the first block with rows of it.
	load(band int) error
	// drop lets go of that after the last one.
	drop(band int)
	// apply changes the rows of a block in place.
	apply(b *block, w *worker) error
	// bytes is about the memory that load takes for a band.
	bytes(band int) int64
}

// loadless is the part of an operation that loads nothing.
type loadless struct{}

func (loadless) load(int) error  { return nil }
func (loadless) drop(int)        {}
func (loadless) bytes(int) int64 { return 0 }

func loadAll(ops []operation, band int) error {
	for _, op := range ops {
		if err := op.load(band); err != nil {
			return err
		}
	}
	return nil
}

func applyAll(ops []operation, b *block, w *worker) error {
	for _, op := range ops {
		if err := op.apply(b, w); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf is about the memory that operations take for a band.
func bytesOf(ops []operation, band int) (n int64) {
	for _, op := range ops {
		n += op.bytes(band)
	}
	return n
}

// block is some rows of a tensor on their way through its pipeline.
type block struct {
	t          *target
	row0, row1 int64
	data       []byte
	stats      *kernel.Stats // of what is put in
	taken      *taken        // of what is taken out
}

// taken is what was done to a block when merges were taken out of it.
type taken struct {
	corrected int64 // predictions that a record has put right
	mayDiffer int64 // elements that may differ, without a record
}

// eachBand calls f for the rows of each band that a block has, with the first of them as the band
// counts.
func (b *block) eachBand(f func(band int, row0 int64, rows []byte) error) error {
	rowBytes := int64(len(b.data)) / (b.row1 - b.row0)
	height := b.t.bandRows()
	for row := b.row0; row < b.row1; {
		band := row / height
		end := min(b.row1, (band+1)*height)
		if err := f(int(band), row-band*height, b.data[(row-b.row0)*rowBytes:(end-b.row0)*rowBytes]); err != nil {
			return err
		}
		row = end
	}
	return nil
}

// worker is the memory of one goroutine.
type worker struct {
	block     []byte
	other     []byte
	before    []byte
	predicted []byte
	narrow    kernel.Scratch[float32]
	broad     kernel.Scratch[float64]
	rescale   kernel.RescaleScratch
	undo      undo.Scratch
	ignored   kernel.Stats
}

// tools are what operations need beside their own terms.
type tools struct {
	plan      *Plan
	kernel    *kernel.Kernel
	shelf     *shelf
	recording *recording    // nil where no record is written
	data      []io.ReaderAt // the files of the base, under the context of the run
	measured  []*rescale    // operations that see the whole tensor before its first block
}

// byBand sorts terms into the bands that they are of.
func byBand(terms []resolve.Term, nBands int) [][]resolve.Term {
	bands := make([][]resolve.Term, nBands)
	for _, x := range terms {
		bands[x.Band] = append(bands[x.Band], x)
	}
	return bands
}

// grow makes the worker's block at least n bytes long.
func (w *worker) grow(n int64) []byte {
	if int64(cap(w.block)) < n {
		w.block = make([]byte, n)
	}
	return w.block[:cap(w.block)]
}

// read reads n bytes of a file of the base into the worker's block.
func (k *tools) read(w *worker, file int, off, n int64) ([]byte, error) {
	p := w.grow(n)[:n]
	_, err := io.ReadFull(io.NewSectionReader(k.data[file], off, n), p)
	return p, fault.InFile(err, k.plan.base.Files[file].Path)
}

// recording is the undo record of a merge in the making.
type recording struct {
	plan    *Plan
	tensors []*record
	writer  *undo.Writer
	sums    []*undo.Sums   // of each file: what identifies the data that the merge does not change
	scratch output.Scratch // where residuals wait
}

// add counts a tensor in, and returns its number in the record.
func (r *recording) add(t *record) int {
	r.tensors = append(r.tensors, t)
	return len(r.tensors) - 1
}
