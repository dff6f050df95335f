package format

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/loratool/loratool/format/dtype"
)

// sources are adapters of all sorts; the tests write them with chunks of 64 KiB.
func sources() map[string]*memory {
	return map[string]*memory{
		"rich":  rich(),
		"empty": {manifest: Manifest{Adapters: []Adapter{{Method: "lora"}}}},
		"F32":   plain(dtype.F32, 6, 1024, 8, 1),
		"BF16":  plain(dtype.BF16, 5, 3000, 4, 2),
		"F64":   plain(dtype.F64, 2, 999, 3, 3),
		"small": plain(dtype.F16, 40, 30, 1, 4),
	}
}

var smallChunks = WriterOptions{ChunkLog2: minChunkLog2}

func TestWrittenFilesReadBack(t *testing.T) {
	for name, src := range sources() {
		t.Run(name, func(t *testing.T) {
			file, sum := written(t, src, smallChunks)
			if sum.FileBytes != int64(len(file)) {
				t.Errorf("FileBytes = %d, want %d", sum.FileBytes, len(file))
			}
			r := opened(t, file)
			if r.ContentID() != sum.ContentID || r.FileID() != sum.FileID {
				t.Errorf("ids are %s and %s, want %s and %s", r.ContentID(), r.FileID(), sum.ContentID, sum.FileID)
			}
			sameContent(t, r, src)

			got, err := Verify(context.Background(), bytes.NewReader(file), int64(len(file)), ReaderOptions{FileID: sum.FileID})
			if err != nil {
				t.Fatalf("Verify: %v", err)
			}
			if *got != *sum {
				t.Errorf("Verify = %+v, want %+v", got, sum)
			}
			again, _ := written(t, r, smallChunks)
			if !bytes.Equal(again, file) {
				t.Error("a file written from a file differs from it")
			}
		})
	}
}

// sameContent compares a file with its source: every tensor by name within its adapter, and the
// content ids.
func sameContent(t *testing.T, r Source, src *memory) {
	t.Helper()
	id, err := ContentID(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ContentID(context.Background(), r); err != nil || got != id {
		t.Errorf("ContentID of the file = %s, %v, want %s", got, err, id)
	}
	want := map[string][]byte{}
	for i, b := range src.blobs {
		want[blobName(&src.manifest, i)] = b
	}
	for i, b := range contents(t, r) {
		name := blobName(r.Manifest(), i)
		if w, ok := want[name]; !ok || !bytes.Equal(b, w) {
			t.Errorf("blob %q = %x, want %x", name, b, w)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("blob %q is lost", name)
	}
	if m := r.Manifest(); !reflect.DeepEqual(m.Metadata, orEmpty(src.manifest.Metadata)) || m.Provenance != src.manifest.Provenance {
		t.Errorf("metadata %q and provenance %q, want %q and %q", m.Metadata, m.Provenance, src.manifest.Metadata, src.manifest.Provenance)
	}
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// blobName returns a name for a blob that is unique in a bundle.
func blobName(m *Manifest, i int) string {
	if i >= len(m.Tensors) {
		return "attachment " + m.Attachments[i-len(m.Tensors)].Name
	}
	for _, a := range m.Adapters {
		for _, l := range a.Layers {
			for _, k := range l.Roles {
				if k == i {
					return a.Name + " " + m.Tensors[i].Name
				}
			}
		}
		for _, b := range a.Beside {
			if b.Tensor == i {
				return a.Name + " " + m.Tensors[i].Name
			}
		}
	}
	return "nobody's " + m.Tensors[i].Name
}

func TestTheBytesDoNotDependOnWorkersOrOrder(t *testing.T) {
	for name, src := range sources() {
		t.Run(name, func(t *testing.T) {
			want, _ := written(t, src, WriterOptions{ChunkLog2: minChunkLog2, Workers: 1})
			for _, workers := range []int{2, 3, 8} {
				got, _ := written(t, src, WriterOptions{ChunkLog2: minChunkLog2, Workers: workers})
				if !bytes.Equal(got, want) {
					t.Errorf("%d workers write other bytes than one", workers)
				}
			}
			got, _ := written(t, shuffled(src), smallChunks)
			if !bytes.Equal(got, want) {
				t.Error("a source in another order is written as other bytes")
			}
		})
	}
}

// shuffled returns src with every list in another order.
func shuffled(src *memory) *memory {
	rng := rand.New(rand.NewPCG(5, 5))
	out := &memory{manifest: src.manifest}
	m := &out.manifest
	nt := len(m.Tensors)
	to := rng.Perm(nt)
	m.Tensors, out.blobs = make([]Tensor, nt), make([][]byte, len(src.blobs))
	for from, i := range to {
		m.Tensors[i], out.blobs[i] = src.manifest.Tensors[from], src.blobs[from]
	}
	m.Attachments = append([]Attachment(nil), m.Attachments...)
	copy(out.blobs[nt:], src.blobs[nt:])
	rng.Shuffle(len(m.Attachments), func(i, j int) {
		m.Attachments[i], m.Attachments[j] = m.Attachments[j], m.Attachments[i]
		out.blobs[nt+i], out.blobs[nt+j] = out.blobs[nt+j], out.blobs[nt+i]
	})
	m.Adapters = append([]Adapter(nil), m.Adapters...)
	rng.Shuffle(len(m.Adapters), func(i, j int) { m.Adapters[i], m.Adapters[j] = m.Adapters[j], m.Adapters[i] })
	for n := range m.Adapters {
		a := &m.Adapters[n]
		a.Layers = append([]Layer(nil), a.Layers...)
		for j := range a.Layers {
			roles := map[Role]int{}
			for role, i := range a.Layers[j].Roles {
				roles[role] = to[i]
			}
			a.Layers[j].Roles = roles
		}
		rng.Shuffle(len(a.Layers), func(i, j int) { a.Layers[i], a.Layers[j] = a.Layers[j], a.Layers[i] })
		a.Beside = append([]Beside(nil), a.Beside...)
		for j := range a.Beside {
			a.Beside[j].Tensor = to[a.Beside[j].Tensor]
		}
		rng.Shuffle(len(a.Beside), func(i, j int) { a.Beside[i], a.Beside[j] = a.Beside[j], a.Beside[i] })
	}
	return out
}

func TestTheContentIDDependsOnTheContentAlone(t *testing.T) {
	id := func(src Source) string {
		id, err := ContentID(context.Background(), src)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	want := id(rich())
	same := rich()
	same.manifest.Metadata, same.manifest.Provenance, same.manifest.Attachments = nil, Provenance{}, nil
	same.manifest.Adapters[1].Base, same.manifest.Adapters[1].Dialect = Base{}, "mlx"
	same.manifest.Adapters[0].Orientation = MxN
	if got := id(same); got != want {
		t.Error("metadata, provenance, attachments, base, dialect or orientation change the content id")
	}
	for name, change := range map[string]func(*memory){
		"a bit":       func(m *memory) { m.blobs[0][0] ^= 1 },
		"a name":      func(m *memory) { m.manifest.Tensors[0].Name += "x" },
		"alpha":       func(m *memory) { m.manifest.Adapters[1].Layers[0].Alpha = 0.25 },
		"method":      func(m *memory) { m.manifest.Adapters[0].Method = "other:x" },
		"requirement": func(m *memory) { m.manifest.Adapters[0].Requires[0].Where = "x" },
		"rows":        func(m *memory) { m.manifest.Adapters[1].Beside[0].Rows[0] = 3 },
		"dtype":       func(m *memory) { m.manifest.Tensors[0].DType = dtype.I8 },
	} {
		other := rich()
		change(other)
		if id(other) == want {
			t.Errorf("%s does not change the content id", name)
		}
	}
}

func TestStreamEqualsRandomAccess(t *testing.T) {
	for name, src := range sources() {
		t.Run(name, func(t *testing.T) {
			file, sum := written(t, src, smallChunks)
			want := contents(t, opened(t, file))
			for _, reader := range []func(io.Reader) io.Reader{
				func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader,
			} {
				s, err := NewStreamReader(reader(bytes.NewReader(file)), ReaderOptions{Workers: 3})
				if err != nil {
					t.Fatal(err)
				}
				got := make([][]byte, len(want))
				last := -1
				streamed, err := s.each(context.Background(), func(blob int, off int64, p []byte) error {
					if blob < last || off != int64(len(got[blob])) {
						t.Errorf("bytes from %d of blob %d come out of order", off, blob)
					}
					last = blob
					got[blob] = append(got[blob], p...)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if *streamed != *sum {
					t.Errorf("Each = %+v, want %+v", streamed, sum)
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("blob %d differs", i)
					}
				}
			}
		})
	}
}

func TestReadBlobAtReadsOnlyTheChunksItNeeds(t *testing.T) {
	src := plain(dtype.F32, 6, 1024, 8, 1) // 12 tensors of 32 KiB: 6 chunks of 64 KiB
	file, _ := written(t, src, smallChunks)
	counted := &countingReader{r: bytes.NewReader(file)}
	r, err := NewReader(counted, int64(len(file)), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if counted.calls > 2 {
		t.Errorf("opening took %d reads, want 2", counted.calls)
	}
	before := counted.bytes
	p := make([]byte, 100)
	for range 3 {
		if err := r.ReadBlobAt(p, 3, 1000); err != nil {
			t.Fatal(err)
		}
	}
	off, end := r.tail.span(1)
	if got, want := counted.bytes-before, end-off; got != want {
		t.Errorf("three reads of one tensor took %d bytes of the file, want the %d of one chunk", got, want)
	}
}

type countingReader struct {
	r     io.ReaderAt
	calls int
	bytes int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.calls++
	c.bytes += int64(n)
	return n, err
}

func TestPinnedFilesAreCheckedAgainstTheirDigests(t *testing.T) {
	file, sum := written(t, plain(dtype.F32, 1, 64, 2, 1), WriterOptions{})
	if _, err := NewReader(bytes.NewReader(file), int64(len(file)), ReaderOptions{FileID: sum.ContentID}); !errors.Is(err, ErrMismatch) {
		t.Errorf("NewReader with another id = %v, want a mismatch", err)
	}
	r := opened(t, file)
	off, end := r.tail.span(0)
	forged := bytes.Clone(file)
	forge(forged[off:end])
	p := make([]byte, 4)
	if err := opened(t, forged).ReadBlobAt(p, 0, 0); err != nil {
		t.Errorf("a frame with a right checksum is not read: %v", err)
	}
	pinned, err := NewReader(bytes.NewReader(forged), int64(len(forged)), ReaderOptions{FileID: sum.FileID})
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	if err := pinned.ReadBlobAt(p, 0, 0); ruleOf(err) != "R61" {
		t.Errorf("ReadBlobAt of a forged chunk = %v, want R61", err)
	}
}
