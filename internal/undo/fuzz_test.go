package undo_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/undo"
)

// memory is the container of a record: streams, then attachments.
type memory struct {
	manifest format.Manifest
	blobs    [][]byte
}

func (m *memory) Manifest() *format.Manifest { return &m.manifest }
func (m *memory) Close() error               { return nil }

func (m *memory) ReadBlobAt(p []byte, i int, off int64) error {
	copy(p, m.blobs[i][off:off+int64(len(p))]) // panics outside of the blob
	return nil
}

// container combines a description, streams, the header of file 0 and the first file beside the
// weights into a container that is as valid as a reader of containers requires.
func container(text, header, side []byte, streams ...[]byte) *memory {
	m := &memory{}
	a := format.Adapter{Method: "other:undo", Requires: []format.Requirement{{Feature: "undo"}}}
	for i, s := range streams {
		a.Beside = append(a.Beside, format.Beside{Action: format.Opaque, Tensor: i})
		m.manifest.Tensors = append(m.manifest.Tensors, format.Tensor{Name: strconv.Itoa(i), DType: dtype.U8, Shape: []uint64{uint64(len(s))}})
		m.blobs = append(m.blobs, s)
	}
	m.manifest.Adapters = []format.Adapter{a}
	m.manifest.Attachments = []format.Attachment{{Name: "headers/0", NBytes: int64(len(header))}, {Name: "side/0", NBytes: int64(len(side))}, {Name: "undo.json", NBytes: int64(len(text))}}
	m.blobs = append(m.blobs, header, side, text)
	return m
}

// seed reads the parts of a record; ok is false if the container is damaged.
func seed(path string) (parts map[string][]byte, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	r, err := format.NewReader(bytes.NewReader(b), int64(len(b)), format.ReaderOptions{})
	if err != nil {
		return nil, false
	}
	defer r.Close()
	m := r.Manifest()
	parts = make(map[string][]byte)
	ok = true
	read := func(name string, i int, n int64) {
		p := make([]byte, min(n, 1<<20))
		ok = ok && n == int64(len(p)) && r.ReadBlobAt(p, i, 0) == nil // large ones slow every run down
		parts[name] = p
	}
	for i := range m.Tensors {
		read(m.Tensors[i].Name, i, m.Tensors[i].NBytes())
	}
	for i := range m.Attachments {
		read(m.Attachments[i].Name, len(m.Tensors)+i, m.Attachments[i].NBytes)
	}
	return parts, ok
}

// FuzzOpen opens a description with one or two streams and restores blocks with it. Nothing panics,
// every error has a kind, and memory is in proportion to the input, not to its claims.
func FuzzOpen(f *testing.F) {
	paths, err := filepath.Glob("../../testdata/undo/*.undo")
	if err != nil || len(paths) < 100 {
		f.Fatalf("%d records: %v", len(paths), err)
	}
	for _, path := range paths {
		if p, ok := seed(path); ok {
			f.Add(p["undo.json"], p["headers/0"], p["side/0"], p["0"], p["1"], p["1"] != nil)
		}
	}
	f.Fuzz(func(t *testing.T, text, header, side, first, second []byte, two bool) {
		streams := [][]byte{first}
		if two {
			streams = append(streams, second)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		values, err := takeBack(t, container(text, header, side, streams...))
		runtime.ReadMemStats(&after)
		if err != nil && fault.KindName(err) == "io" {
			t.Errorf("%v has no kind", err)
		}
		input := len(text) + len(header) + len(side) + len(first) + len(second)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+100*input+4*values); got > most {
			t.Errorf("%d bytes allocated for %d bytes of a record and %d of values", got, input, values)
		}
	})
}

// takeBack reads everything in a record and restores the first blocks and the last block of every
// tensor. It returns the number of bytes restored.
func takeBack(t *testing.T, src format.Source) (values int, err error) {
	r, err := undo.Open(src)
	if err != nil {
		return 0, err
	}
	for i := range r.Files {
		if !r.Files[i].Changed() {
			continue
		}
		if _, err := r.HeaderBytes(i); err != nil {
			return 0, err
		}
	}
	for i := range r.Side {
		if _, err := r.SideBytes(i); err != nil {
			return 0, err
		}
	}
	var scratch undo.Scratch
	for i := range r.Tensors {
		x := &r.Tensors[i]
		if r.StreamBytes(i) < 0 || x.Elements() < 0 || x.Blocks() < 0 {
			t.Errorf("%d elements, %d blocks, a stream of %d bytes", x.Elements(), x.Blocks(), r.StreamBytes(i))
		}
		if _, err := r.Summarise(i); err != nil {
			return values, err
		}
		d, ok := dtype.Parse(x.DType)
		if !ok {
			t.Fatalf("dtype %q", x.DType)
		}
		for _, k := range []int64{0, 1, x.Blocks() - 1} {
			n := min(x.Block, x.Elements()-k*x.Block)
			if k < 0 || k >= x.Blocks() || n > 1<<20 {
				continue
			}
			p := make([]byte, n*int64(d.Size()))
			values += len(p)
			if err := r.CheckMerged(i, k, p); err != nil && fault.KindName(err) == "io" {
				t.Errorf("%v has no kind", err)
			}
			if _, err := r.Restore(&scratch, i, k, p); err != nil {
				return values, err
			}
		}
	}
	return values, nil
}
