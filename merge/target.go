package merge

import (
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// target is a tensor of the base that changes, and where it lies.
type target struct {
	*resolve.Change
	ref  checkpoint.Ref
	undo []step // what is taken out before that, the latest merge first
}

// changes reports whether something is put into the tensor.
func (t *target) changes() bool { return len(t.Terms) > 0 || t.Replace != nil || t.Rows != nil }

// bandRows is the height of a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.Matrix()
	return nRows / int64(t.NBands)
}

// step is one merge that is taken out of a tensor again.
type step struct {
	record *undo.Record   // nil where there is none, and the subtraction has to do
	name   string         // of the record
	tensor int            // in the record
	terms  []resolve.Term // what the prediction adds: the merge's terms with their signs turned
}

// outFile is one weight file of the output: the base's, with another header where it has targets.
type outFile struct {
	in      *checkpoint.File
	before  restored // its header when what is taken out is out
	header  []byte   // in full, length included; nil where the file's own stays as it is
	shift   int64    // how far the data move
	targets []*target
}

func (f *outFile) size() int64 { return f.in.Size + f.shift }

// nameOf is the name of a file within the checkpoint; one that is a file itself has none.
func (p *Plan) nameOf(f *outFile) string {
	if !p.base.IsDir {
		return ""
	}
	return f.in.Name
}

// blockRows is how many rows of a target are worked on at a time: with records, whole blocks of all of them.
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

// multipleOfBoth is the least common multiple of a and b, or most if that is less.
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

// blockBytes is how much of the base a worker holds at a time.
func (p *Plan) blockBytes() int64 {
	if p.options.BlockBytes > 0 {
		return int64(p.options.BlockBytes)
	}
	return defaultBlockBytes
}

// defaultBlockBytes is how much of the base a worker holds at a time, and a block of an undo record.
const defaultBlockBytes = 1 << 20

// recordBlock is how many elements of a tensor a block of the undo record has.
func recordBlock(t *target) int64 {
	_, nCols := t.Matrix()
	return max(1, defaultBlockBytes/max(1, nCols*int64(t.DType.Size()))*nCols, nCols)
}

// restored is the header that a file had before what is taken out was merged.
type restored struct {
	identity undo.Header
	header   *checkpoint.Header // nil for a file that does not change
}

// Record is an undo record (spec/UNDO.md), opened for reading.
type Record struct {
	Name   string // how messages call it, such as its path
	record *undo.Record

	identity fileio.Identity // of the file that it is in
}

// fileOf finds file i of a record among those of the checkpoint, or returns −1. Where both have one, it is that, whatever its
// name is by now.
func fileOf(base *checkpoint.Checkpoint, r *undo.Record, i int) int {
	if len(r.Files) == 1 && len(base.Files) == 1 {
		return 0
	}
	return slices.IndexFunc(base.Files, func(f *checkpoint.File) bool { return f.Name == r.Files[i].Name })
}
