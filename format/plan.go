package format

import (
	"iter"
	"sort"

	"github.com/loratool/loratool/format/dtype"
)

// coding is how the raw bytes of a chunk become coded bytes (spec section 9).
type coding uint8

const (
	raw    coding = iota // as they are
	planes               // sign moved to the lowest bit, then one plane per byte of the element
)

var codingNames = []string{raw: "raw", planes: "planes"}

// run is a sequence of tensors with the same dtype and coding, or all attachments. A plan has no
// empty runs.
type run struct {
	dtype  dtype.Type // dtype.Invalid for the attachments
	coding coding
	off, n int64 // raw bytes; off counts from the first raw byte of the file
	first  int64 // its first chunk
}

// plan is the layout of a file (spec section 8), which follows from the manifest alone.
type plan struct {
	chunkBytes int64
	runs       []run
	blobs      []int64 // where each blob begins, counted from the first raw byte; the last entry is the end
	total      int64   // raw bytes
	chunks     int64
	largest    int64 // raw bytes of the largest chunk
}

// newPlan lays out the tensors and attachments of m. More than limit raw bytes are an error.
func newPlan(m *Manifest, codings []coding, chunkLog2 uint8, limit int64) (*plan, error) {
	p := &plan{
		chunkBytes: 1 << chunkLog2,
		blobs:      make([]int64, 0, len(m.Tensors)+len(m.Attachments)+1),
	}
	limit = min(limit, maxRawBytes)
	add := func(t dtype.Type, c coding, cut bool, n int64) error {
		if cut {
			p.endRun()
			p.runs = append(p.runs, run{dtype: t, coding: c, off: p.total, first: p.chunks})
		}
		p.blobs = append(p.blobs, p.total)
		p.total += n
		if p.total > limit {
			return broken(56, "tensors and attachments exceed %d bytes", limit)
		}
		p.runs[len(p.runs)-1].n += n
		return nil
	}
	for i := range m.Tensors {
		t := &m.Tensors[i]
		cut := i == 0 || t.DType != m.Tensors[i-1].DType || codings[i] != codings[i-1]
		if err := add(t.DType, codings[i], cut, t.NBytes()); err != nil {
			return nil, err
		}
	}
	for i := range m.Attachments {
		if err := add(dtype.Invalid, raw, i == 0, m.Attachments[i].NBytes); err != nil {
			return nil, err
		}
	}
	p.endRun()
	p.blobs = append(p.blobs, p.total)
	if p.chunks > maxChunks {
		return nil, broken(57, "%d chunks, the limit is %d", p.chunks, maxChunks)
	}
	return p, nil
}

// endRun counts the chunks of the last run, and drops the run if it is empty.
func (p *plan) endRun() {
	if len(p.runs) == 0 {
		return
	}
	last := &p.runs[len(p.runs)-1]
	if last.n == 0 {
		p.runs = p.runs[:len(p.runs)-1]
		return
	}
	p.chunks = last.first + (last.n+p.chunkBytes-1)/p.chunkBytes
	p.largest = max(p.largest, min(last.n, p.chunkBytes))
}

// chunk is a part of a run that is coded and stored on its own.
type chunk struct {
	dtype  dtype.Type
	coding coding
	off, n int64 // raw bytes; off counts from the first raw byte of the file
}

// chunk returns chunk i.
func (p *plan) chunk(i int64) chunk {
	r := &p.runs[sort.Search(len(p.runs), func(j int) bool { return p.runs[j].first > i })-1]
	in := (i - r.first) * p.chunkBytes
	return chunk{dtype: r.dtype, coding: r.coding, off: r.off + in, n: min(p.chunkBytes, r.n-in)}
}

// chunkAt returns the index of the chunk that holds raw byte off.
func (p *plan) chunkAt(off int64) int64 {
	r := &p.runs[sort.Search(len(p.runs), func(j int) bool { return p.runs[j].off > off })-1]
	return r.first + (off-r.off)/p.chunkBytes
}

// blobBytes returns the length of blob b.
func (p *plan) blobBytes(b int) int64 { return p.blobs[b+1] - p.blobs[b] }

// piece is the part of a blob that lies in one chunk.
type piece struct {
	blob   int
	off    int64 // in the blob
	lo, hi int64 // in the chunk
}

// pieces returns the pieces of a chunk, in order. Empty blobs have none.
func (p *plan) pieces(c chunk) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		end := c.off + c.n
		for b := sort.Search(len(p.blobs), func(b int) bool { return p.blobs[b] > c.off }) - 1; b < len(p.blobs)-1 && p.blobs[b] < end; b++ {
			from, to := max(p.blobs[b], c.off), min(p.blobs[b+1], end)
			if from < to && !yield(piece{blob: b, off: from - p.blobs[b], lo: from - c.off, hi: to - c.off}) {
				return
			}
		}
	}
}
