package merge

import (
	"context"
	"io"
	"sync"

	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// operation is one step in changing a tensor. The operations of a tensor run in order on each block
// of rows: restore or subtract removed merges, replace, add or rescale, set rows. Unmerging runs
// the inverses of a merge; a swap runs an unmerge and then a merge.
type operation interface {
	// load reads the operation's inputs for a band, before the first block with rows of that band.
	load(ctx context.Context, band int) error
	// drop releases these inputs after the last such block.
	drop(band int)
	// apply changes the rows of a block in place.
	apply(ctx context.Context, b *block, w *worker) error
	// bytes estimates the memory that load takes for a band.
	bytes(band int) int64
}

// loadless is embedded in operations that load nothing.
type loadless struct{}

func (loadless) load(context.Context, int) error { return nil }

func (loadless) drop(int) {}

func (loadless) bytes(int) int64 { return 0 }

func loadAll(ctx context.Context, ops []operation, band int) error {
	for _, op := range ops {
		if err := op.load(ctx, band); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func applyAll(ctx context.Context, ops []operation, b *block, w *worker) error {
	for _, op := range ops {
		if err := op.apply(ctx, b, w); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf estimates the memory that the operations take for a band.
func bytesOf(ops []operation, band int) (n int64) {
	for _, op := range ops {
		n += op.bytes(band)
	}
	return n
}

// block is a run of rows of one tensor on its way through the pipeline.
type block struct {
	t          *target
	row0, row1 int64
	data       []byte
	stats      *kernel.Stats // of the merge
	taken      *taken        // of the removals
}

// taken counts the elements of removed merges, and of new codes.
type taken struct {
	corrected int64 // wrong predictions that a record has corrected
	mayDiffer int64 // elements that may differ, for want of a record
	clamped   int64 // elements beyond all codes
}

// eachBand calls f for each band in the block, with that band's rows and the number of the first
// row within the band.
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

// worker holds the buffers of one goroutine.
type worker struct {
	block     []byte
	other     []byte
	before    []byte
	predicted []byte
	exact     []float64
	recoding  checkpoint.Recoding
	narrow    kernel.Scratch[float32]
	broad     kernel.Scratch[float64]
	rescale   kernel.RescaleScratch
	undo      undo.Scratch
	residuals kernel.Residuals
	ignored   kernel.Stats
}

// spares keeps the buffers in which factors are read, for the next layer: in a model of many tiny
// layers they would be most of what the collector has to find. The zero value is ready to use, by
// any number of goroutines.
type spares struct{ bytes, values sync.Pool }

// spareBytes is the size of the largest buffers that are kept. Larger ones cost little next to
// their layer, and would add to the memory of a merge.
const spareBytes = 64 << 10

// piece returns n bytes of any content.
func (s *spares) piece(n int) []byte {
	if p, ok := s.bytes.Get().(*[]byte); ok && cap(*p) >= n {
		return (*p)[:n]
	}
	return make([]byte, n)
}

// keepPiece takes back a piece.
func (s *spares) keepPiece(p []byte) {
	if 0 < cap(p) && cap(p) <= spareBytes {
		s.bytes.Put(&p)
	}
}

// zeros returns n zeros.
func zeros[T kernel.Float](s *spares, n int) []T {
	if p, ok := s.values.Get().(*[]T); ok && cap(*p) >= n {
		clear((*p)[:n])
		return (*p)[:n]
	}
	return make([]T, n)
}

// keepValues takes back a list from zeros.
func keepValues[T kernel.Float](s *spares, p []T) {
	const wordBytes = 8
	if 0 < cap(p) && cap(p)*wordBytes <= spareBytes {
		s.values.Put(&p)
	}
}

// tools holds the things that operations need besides their own terms.
type tools struct {
	plan      *Plan
	kernel    *kernel.Kernel
	shelf     *shelf
	recording *recording    // nil without an undo record
	data      []io.ReaderAt // the base's files, under the context of the run
	measured  []measurer    // operations that read the whole tensor before its first block
}

// measurer is an operation that needs sums over the whole tensor.
type measurer interface {
	measure(ctx context.Context, workers []worker) error
}

// byBand groups terms by band. A single band shares the list.
func byBand(terms []resolve.Term, nBands int) [][]resolve.Term {
	if nBands == 1 {
		return [][]resolve.Term{terms}
	}
	bands := make([][]resolve.Term, nBands)
	for _, x := range terms {
		bands[x.Band] = append(bands[x.Band], x)
	}
	return bands
}

// grow returns the worker's block, enlarged to at least n bytes.
func (w *worker) grow(n int64) []byte {
	if int64(cap(w.block)) < n {
		w.block = make([]byte, n)
	}
	return w.block[:cap(w.block)]
}

// read reads n bytes of a base file into the worker's block.
func (k *tools) read(w *worker, file int, off, n int64) ([]byte, error) {
	p := w.grow(n)[:n]
	_, err := io.ReadFull(io.NewSectionReader(k.data[file], off, n), p)
	return p, fault.InFile(err, k.plan.base.Files[file].Path)
}

// readExact reads rows of a decoded weight.
func (t *target) readExact(ctx context.Context, w *worker, row0, row1 int64) ([]float64, error) {
	_, nCols := t.Matrix()
	n := (row1 - row0) * nCols
	if int64(cap(w.exact)) < n {
		w.exact = make([]float64, n)
	}
	return w.exact[:n], t.exact.ReadValues(ctx, w.exact[:n], row0*nCols)
}

// recording is an undo record under construction.
type recording struct {
	plan    *Plan
	tensors []*record
	writer  *undo.Writer
	sums    []*undo.Sums   // per file: checksums of the data that the merge leaves alone
	scratch output.Scratch // holds residuals until the record is written
}

// add appends a tensor and returns its number in the record.
func (r *recording) add(t *record) int {
	r.tensors = append(r.tensors, t)
	return len(r.tensors) - 1
}

// blockRows returns how many rows of a target are processed together. With records it is a multiple
// of every record's block.
func (p *Plan) blockRows(t *target) int64 {
	nRows, nCols := t.Matrix()
	if nRows == 0 || nCols == 0 {
		return 1
	}
	elements := nCols
	for i := range t.undo {
		if s := &t.undo[i]; s.record != nil {
			elements = multipleOfBoth(elements, s.record.Tensors[s.tensor].Block, nRows*nCols)
		}
	}
	if p.options.wantsRecord() && t.changes() {
		elements = multipleOfBoth(elements, recordBlock(t), nRows*nCols)
	}
	if elements > nCols {
		return elements / nCols
	}
	return min(nRows, max(1, p.blockBytes()/(nCols*int64(t.ref.Tensor.DType.Size()))))
}

// multipleOfBoth returns the least common multiple of a and b, but at most most.
func multipleOfBoth(a, b, most int64) int64 {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	if b/x > most/a {
		return most
	}
	return min(most, a*(b/x))
}

// blockBytes returns the bytes of the base that a worker holds at a time.
func (p *Plan) blockBytes() int64 {
	if p.options.BlockBytes > 0 {
		return int64(p.options.BlockBytes)
	}
	return defaultBlockBytes
}

// defaultBlockBytes is the size of a worker's block, and of a block in an undo record.
const defaultBlockBytes = 1 << 20

// recordBlock returns the number of elements in a block of the undo record.
func recordBlock(t *target) int64 {
	_, nCols := t.Matrix()
	return max(1, defaultBlockBytes/max(1, nCols*int64(t.DType.Size()))*nCols, nCols)
}
