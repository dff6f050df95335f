package merge

import (
	"io"
	"slices"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/resolve"
)

const (
	// defaultBlockBytes is how much of the base a worker holds at a time.
	defaultBlockBytes = 1 << 20
	// copyBytes is the piece in which untouched data are copied, so that several workers share a large range and an
	// interrupt is noticed.
	copyBytes = 64 << 20
	// smallCopyBytes is the most that is copied through a worker's memory where it lies among small tensors that change.
	smallCopyBytes = 64 << 10
)

// outFile is one weight file of the output: the base's, with another header where it has targets.
type outFile struct {
	in      *checkpoint.File
	data    io.ReaderAt // the base's file, under the context of the run
	header  []byte      // in full, length included; nil where the file's own stays as it is
	shift   int64       // how far the data move
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

// layOut builds the output files and their headers.
func (p *Plan) layOut() error {
	byFile := make(map[int][]*target)
	for _, t := range p.targets {
		byFile[t.ref.File] = append(byFile[t.ref.File], t)
	}
	for i, in := range p.base.Files {
		f := &outFile{in: in, targets: byFile[i]}
		if before := p.restored[i].header; before != nil {
			f.header = before.Raw
			if slices.ContainsFunc(f.targets, (*target).changes) {
				var err error
				if f.header, err = before.Stamped(p.stamp()); err != nil {
					return err
				}
			}
			f.shift = int64(len(f.header)) - in.DataOff
		}
		p.files = append(p.files, f)
	}
	return nil
}

// OutputBytes is the size of everything that Run writes, but for the other files of a directory.
func (p *Plan) OutputBytes() int64 {
	var n int64
	for _, f := range p.files {
		n += f.size()
	}
	return n
}

// job is a piece of work: a range to copy, or rows of a target to merge, or the header of a file.
type job struct {
	index      int // among the jobs
	file       int
	off, n     int64    // a range of the base's file
	target     *running // nil where the range is copied
	row0, row1 int64
	header     bool
}

// bands are the first and the last band that the job's rows are of.
func (j *job) bands() (first, last int) {
	height := j.target.bandRows()
	return int(j.row0 / height), int((j.row1 - 1) / height)
}

// batch is jobs from first to end whose ranges are read and written together.
type batch struct{ first, end int }

// batches puts jobs together that follow each other in a file and are small, as long as they fit in a block, so that a model of many
// small tensors does not pay for reading and writing each of them.
func (p *Plan) batches(jobs []job) []batch {
	var all []batch
	var n int64 // of the last batch; more than a block where nothing may be added
	for i := range jobs {
		j := &jobs[i]
		alone := j.header || j.target == nil && j.n > smallCopyBytes
		if i > 0 && !alone && j.file == jobs[i-1].file && n+j.n <= p.blockBytes() {
			all[len(all)-1].end++
			n += j.n
			continue
		}
		all = append(all, batch{i, i + 1})
		if n = j.n; alone {
			n = p.blockBytes()
		}
	}
	return all
}

// jobs lists the work in the order of the output's bytes.
func (p *Plan) jobs(state map[*target]*running) []job {
	var jobs []job
	copyRange := func(file int, from, to int64) {
		for ; from < to; from += copyBytes {
			jobs = append(jobs, job{file: file, off: from, n: min(copyBytes, to-from)})
		}
	}
	for i, f := range p.files {
		at := int64(0)
		if f.header != nil {
			jobs = append(jobs, job{file: i, header: true})
			at = f.in.DataOff
		}
		for _, t := range f.targets {
			tensor := t.ref.Tensor
			copyRange(i, at, tensor.Off)
			at = tensor.Off + tensor.NBytes
			nRows, nCols := t.Matrix()
			if nRows == 0 || nCols == 0 {
				continue
			}
			step, rowBytes := p.blockRows(t), nCols*int64(tensor.DType.Size())
			for row := int64(0); row < nRows; row += step {
				end := min(row+step, nRows)
				j := job{file: i, off: tensor.Off + row*rowBytes, n: (end - row) * rowBytes, target: state[t], row0: row, row1: end}
				jobs = append(jobs, j)
				first, last := j.bands()
				for band := first; band <= last; band++ {
					j.target.bands[band].left.Add(1)
				}
			}
		}
		copyRange(i, at, f.in.Size)
	}
	for i := range jobs {
		jobs[i].index = i
	}
	return jobs
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
		elements = multipleOfBoth(elements, p.recordBlock(t), nRows*nCols)
	}
	if elements > nCols {
		return elements / nCols
	}
	return min(nRows, max(1, p.blockBytes()/(nCols*int64(t.ref.Tensor.DType.Size()))))
}

// recordBlock is how many elements of a target a block of the undo record has that is written.
func (p *Plan) recordBlock(t *target) int64 {
	_, nCols := t.Matrix()
	return max(1, defaultBlockBytes/max(1, nCols*int64(t.ref.Tensor.DType.Size()))*nCols, nCols)
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

func (p *Plan) blockBytes() int64 {
	if p.options.BlockBytes > 0 {
		return int64(p.options.BlockBytes)
	}
	return defaultBlockBytes
}

// PlannedTensor is one tensor that changes, as the plan knows it.
type PlannedTensor struct {
	Tensor   string      `json:"tensor"`
	Module   string      `json:"module"`
	DType    string      `json:"dtype"`
	Shape    []uint64    `json:"shape"`
	Rank     int         `json:"rank,omitempty"`     // Σ r of the updates
	Scale    float64     `json:"scale,omitempty"`    // ω·s, where there is one update
	Replaced bool        `json:"replaced,omitempty"` // a tensor of the adapter takes its place
	Added    bool        `json:"added,omitempty"`    // the base lacks it
	Was      []uint64    `json:"was,omitempty"`      // the shape that the base has, where it is another
	DoRA     bool        `json:"dora,omitempty"`     // rescaled by magnitudes: W + ΔW is m·V/‖V‖
	Rows     int         `json:"rows,omitempty"`     // rows of it that are replaced
	Updates  []TermShort `json:"updates,omitempty"`  // where there are several
}

// TermShort is one of several updates of a tensor.
type TermShort struct {
	Adapter string  `json:"adapter"`
	Rank    int     `json:"rank"`
	Scale   float64 `json:"scale"`
}

// Tensors lists what changes, in the order of the output.
func (p *Plan) Tensors() []PlannedTensor {
	all := make([]PlannedTensor, len(p.targets))
	for i, t := range p.targets {
		all[i] = p.describe(t)
	}
	return all
}

func (p *Plan) describe(t *target) PlannedTensor {
	d := PlannedTensor{Tensor: t.ref.Tensor.Name, Module: t.Module, DType: t.ref.Tensor.DType.String(), Shape: t.ref.Tensor.Shape, Replaced: t.Replace != nil, DoRA: t.DoRA != nil}
	if was, ok := p.shaped.Added[d.Tensor]; ok {
		d.Added, d.Was = was == nil, was
	}
	if t.Rows != nil {
		d.Rows = len(t.Rows.Order)
	}
	for i, a := range p.adapters[p.nRemoved:] {
		if u := t.update(i); u.Rank > 0 {
			u.Adapter = a.Name
			d.Rank += u.Rank
			d.Scale = u.Scale
			d.Updates = append(d.Updates, u)
		}
	}
	if len(d.Updates) > 1 {
		d.Scale = 0
	} else {
		d.Updates = nil
	}
	return d
}

// update sums up what one adapter adds: the rank of the band that has the most, and the scale, 0 where there are several.
func (t *target) update(adapter int) (u TermShort) {
	ranks := make(map[int]int)
	for _, term := range t.Terms {
		if term.Adapter != adapter || term.Residual != resolve.NoResidual {
			continue
		}
		if len(ranks) == 0 {
			u.Scale = term.Scale
		} else if u.Scale != term.Scale {
			u.Scale = 0
		}
		ranks[term.Band] += term.Rank
		u.Rank = max(u.Rank, ranks[term.Band])
	}
	return u
}

// PeakBytes estimates the memory that Run takes: blocks and factors in flight, at most workers+1 bands at a time, and the tensors
// of adapters that bands share.
func (p *Plan) PeakBytes(workers int) int64 {
	var largest, shared, blocks int64
	block, buffers := p.blockBytes(), int64(2)
	for _, t := range p.targets {
		nRows, nCols := t.Matrix()
		if nRows > 0 && nCols > 0 {
			blocks += (nRows-1)/p.blockRows(t) + 1
			block = max(block, p.blockRows(t)*nCols*int64(t.ref.Tensor.DType.Size()))
		}
		bands := make([]int64, t.NBands)
		var whole int64
		add := func(terms []resolve.Term) {
			size := int64(dtype.F32.Size())
			if t.wide(terms) {
				size = int64(dtype.F64.Size())
			}
			for _, term := range terms {
				bands[term.Band] += size * ((2*int64(term.Rank)+1)*t.bandRows() + (int64(term.Rank)+1)*nCols) // L as it is and scaled
				if term.Residual != resolve.NoResidual {                                                      // the whole weight, and some vectors of both sides for each singular vector
					bands[term.Band] += t.bandRows()*nCols*int64(dtype.F32.Size()) + 16*int64(term.Rank)*(t.bandRows()+nCols)*int64(dtype.F64.Size())
				}
				if t.NBands > 1 {
					whole += size * int64(term.Rank) * int64(term.Left.Length+term.Right.Length)
				}
			}
		}
		add(t.Terms)
		for i := range t.undo {
			add(t.undo[i].terms)
		}
		largest, shared = max(largest, slices.Max(bands)), max(shared, whole)
	}
	if p.options.wantsRecord() || p.nRemoved > 0 {
		buffers = 5 // values before and after, predictions, and residuals
	}
	return min(int64(workers), blocks)*(buffers*block+largest) + largest + 2*shared
}
