package undo

import (
	"context"
	"crypto/sha256"
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

// Spool is where residuals wait until all are there: a temporary file, as the container wants their
// lengths first.
type Spool interface {
	io.ReaderAt
	io.WriterAt
}

// Writer gathers a record while a merge runs. Add may be called from several goroutines at once,
// for each block once.
type Writer struct {
	description *Description
	headers     [][]byte // of the files before the merge; nil for those that it does not change
	spool       Spool
	spooled     atomic.Int64
	streams     []stream
}

// stream is one tensor's residuals in the making.
type stream struct {
	entries []byte
	offs    []int64 // of the payloads in the spool
	lens    []int64
	starts  []int64 // of the payloads in the stream, when all are there
	nBytes  int64
}

// NewWriter begins the record of a merge; headers are those of the description's files before it.
func NewWriter(d *Description, headers [][]byte, spool Spool) *Writer {
	d.Version = version
	w := &Writer{description: d, headers: headers, spool: spool, streams: make([]stream, len(d.Tensors))}
	for i := range d.Tensors {
		n := d.Tensors[i].Blocks()
		w.streams[i] = stream{entries: make([]byte, n*entryBytes), offs: make([]int64, n), lens: make([]int64, n)}
	}
	return w
}

// Description is the record's account of the merge.
func (w *Writer) Description() *Description { return w.description }

// Add records one block of a tensor: its values before and after the merge, and what is predicted
// from the latter.
func (w *Writer) Add(s *Scratch, tensor int, block int64, before, predicted, after []byte) error {
	c, st := &s.coded, &w.streams[tensor]
	c.encode(before, predicted, w.description.Tensors[tensor].width())
	e := st.entries[block*entryBytes:][:entryBytes]
	le.PutUint32(e, uint32(len(c.marks)))
	if c.planar {
		le.PutUint32(e, planarMark)
	}
	le.PutUint32(e[4:], uint32(len(c.sizes)))
	le.PutUint32(e[8:], uint32(len(c.escapes)))
	le.PutUint32(e[12:], crc32.ChecksumIEEE(after))
	sum := sha256.Sum256(before)
	copy(e[16:], sum[:])

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

// Write writes the record when every block has been added. Its bytes depend on the merge alone.
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
	for i, h := range w.headers {
		if h != nil {
			src.attach(headerName+strconv.Itoa(i), h)
		}
	}
	src.attach(descriptionName, text)
	return format.Write(ctx, dst, src, format.WriterOptions{Workers: workers, Tool: w.description.Tool})
}

// recordSource shows a finished record to the container's writer.
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

// ReadBlobAt reads from a stream, whose payloads lie anywhere in the spool and whose table is in
// memory, or from an attachment.
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
