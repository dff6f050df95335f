package undo

import (
	"context"
	"encoding/json"
	"hash/crc32"
	"io"
	"sort"
	"strconv"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// Spool stores residuals until all are complete, usually in a temporary file: the container begins
// with their lengths.
type Spool interface {
	io.ReaderAt
	io.WriterAt
}

// Writer collects a record during a merge. Several goroutines may call Add at once, once for each
// block.
type Writer struct {
	description *Description
	before      Before
	spool       Spool
	spooled     atomic.Int64
	streams     []stream
}

// stream collects the residuals of one tensor.
type stream struct {
	entries []byte
	offs    []int64 // of the payloads in the spool
	lens    []int64
	starts  []int64 // of the payloads in the stream, once all are complete
	nBytes  int64
}

// Before is what files had before the merge.
type Before struct {
	Headers [][]byte // of the description's files, nil for unchanged ones
	Side    [][]byte // the contents of its files beside the weights
}

// NewWriter starts the record of a merge.
func NewWriter(d *Description, before Before, spool Spool) *Writer {
	d.Version = version
	w := &Writer{description: d, before: before, spool: spool, streams: make([]stream, len(d.Tensors))}
	for i := range d.Tensors {
		n := d.Tensors[i].Blocks()
		w.streams[i] = stream{entries: make([]byte, n*entryBytes), offs: make([]int64, n), lens: make([]int64, n)}
	}
	return w
}

// Description returns the description of the merge.
func (w *Writer) Description() *Description { return w.description }

// Add records one block of a tensor: its values before and after the merge, and the predictions
// computed from the values after.
func (w *Writer) Add(s *Scratch, tensor int, block int64, before, predicted, after []byte) error {
	s.coded.encode(before, predicted, w.description.Tensors[tensor].width())
	return w.add(s, tensor, block, Sum(before), after)
}

// AddResiduals is Add for elements of two bytes whose residuals are known: those of elements whose
// bit is set in differs are in z, the others are zero. before is the Sum of the values before the
// merge.
func (w *Writer) AddResiduals(s *Scratch, tensor int, block int64, before uint32, differs []uint64, z, after []byte) error {
	s.coded.encodeKnown(differs, z)
	return w.add(s, tensor, block, before, after)
}

// add records the residuals in s.
func (w *Writer) add(s *Scratch, tensor int, block int64, before uint32, after []byte) error {
	c, st := &s.coded, &w.streams[tensor]
	e := st.entries[block*entryBytes:][:entryBytes]
	le.PutUint32(e, uint32(len(c.marks)))
	if c.planar {
		le.PutUint32(e, planarMark)
	}
	le.PutUint32(e[4:], uint32(len(c.sizes)))
	le.PutUint32(e[8:], uint32(len(c.escapes)))
	le.PutUint32(e[12:], crc32.ChecksumIEEE(after))
	le.PutUint32(e[beforeAt:], before)

	s.payload = append(append(append(s.payload[:0], c.marks...), c.sizes...), c.escapes...)
	n := int64(len(s.payload))
	if n == 0 {
		return nil
	}
	off := w.spooled.Add(n) - n
	st.offs[block], st.lens[block] = off, n
	_, err := w.spool.WriteAt(s.payload, off)
	return err
}

// Write writes the record after every block has been added. Its bytes depend only on the merge, not
// on the order of the blocks.
func (w *Writer) Write(ctx context.Context, dst io.Writer, workers int) (*format.Summary, error) {
	text, err := json.Marshal(w.description)
	if err != nil {
		return nil, err
	}
	src := &recordSource{w: w}
	a := format.Adapter{Method: method, Requires: []format.Requirement{{Feature: format.FeatureUndo}}}
	for i := range w.streams {
		st := &w.streams[i]
		st.starts = make([]int64, len(st.lens))
		for j, n := range st.lens {
			st.starts[j] = st.nBytes
			st.nBytes += n
		}
		src.manifest.Tensors = append(src.manifest.Tensors, format.Tensor{
			Name: strconv.Itoa(i), DType: dtype.U8, Shape: []uint64{uint64(st.nBytes) + uint64(len(st.entries))},
		})
		a.Beside = append(a.Beside, format.Beside{Action: format.Opaque, Tensor: i})
	}
	src.manifest.Adapters = []format.Adapter{a}
	for i, h := range w.before.Headers {
		if h != nil {
			src.attach(headerName+strconv.Itoa(i), h)
		}
	}
	for i, text := range w.before.Side {
		src.attach(sideName+strconv.Itoa(i), text)
	}
	src.attach(descriptionName, text)
	return format.Write(ctx, dst, src, format.WriterOptions{Quick: true, Workers: workers, Tool: w.description.Tool})
}

// recordSource presents a finished record to the container's writer.
type recordSource struct {
	w           *Writer
	attachments [][]byte
	manifest    format.Manifest
}

func (s *recordSource) attach(name string, content []byte) {
	s.manifest.Attachments = append(s.manifest.Attachments, format.Attachment{Name: name, NBytes: int64(len(content))})
	s.attachments = append(s.attachments, content)
}

func (s *recordSource) Manifest() *format.Manifest { return &s.manifest }

func (s *recordSource) Close() error { return nil }

// ReadBlobAt reads an attachment or a stream. The payloads of a stream are scattered over the
// spool; its table is in memory.
func (s *recordSource) ReadBlobAt(p []byte, i int, off int64) error {
	if i >= len(s.w.streams) {
		copy(p, s.attachments[i-len(s.w.streams)][off:])
		return nil
	}
	st := &s.w.streams[i]
	for len(p) > 0 {
		if off >= st.nBytes {
			copy(p, st.entries[off-st.nBytes:])
			return nil
		}
		// The last block that begins at or before off and is not empty.
		j := sort.Search(len(st.starts), func(j int) bool { return st.starts[j] > off }) - 1
		within := off - st.starts[j]
		n := min(int64(len(p)), st.lens[j]-within)
		if _, err := s.w.spool.ReadAt(p[:n], st.offs[j]+within); err != nil {
			return fault.InFile(err, "the residuals")
		}
		p, off = p[n:], off+n
	}
	return nil
}
