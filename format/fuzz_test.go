package format

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"runtime/metrics"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// The properties: no input makes a reader panic or use more memory than it promises, and everything
// accepted can be written again with the same content. In half of the runs the test first corrects
// the checksums and digests of the mutated file, because otherwise almost every run would end at
// them.

// fuzzOptions keep a run short. Memory is measured against them.
var fuzzOptions = ReaderOptions{MaxManifestBytes: 1 << 18, MaxRawBytes: 1 << 18, Workers: 2}

// promised is the total memory that a file of n bytes may take in all readers, one after the other:
// buffers and decoders of each, and a multiple of the manifest, which can be many times as large as
// its frame.
func promised(n int) uint64 { return uint64(64*n) + 48<<20 }

// allocated runs f and returns how many bytes it allocated.
func allocated(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}

// seeds are small files of all sorts.
func seeds(f *testing.F) [][]byte {
	var files [][]byte
	for _, src := range []*memory{rich(), example(), {manifest: Manifest{Adapters: []Adapter{{Method: "lora"}}}}, plain(dtype.BF16, 2, 600, 2, 1)} {
		p, _ := written(f, src, smallChunks)
		files = append(files, p)
	}
	return files
}

func FuzzHead(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p[:headBytes])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := parseHead(p, maxManifestBytes)
		if err != nil {
			return
		}
		if again := appendHead(nil, h, make([]byte, h.storedManifest())); !bytes.Equal(again[:headBytes], p[:headBytes]) {
			t.Errorf("head % x is written as % x", p[:headBytes], again[:headBytes])
		}
	})
}

func FuzzManifest(f *testing.F) {
	for _, src := range []*memory{rich(), example(), plain(dtype.F32, 2, 8, 2, 1)} {
		_, text, err := arrange(src.Manifest())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, false)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, text []byte, newer bool) {
		var m *Manifest
		var codings []coding
		var err error
		if n := allocated(func() { m, codings, err = parseManifest(string(text), newer) }); n > uint64(64*len(text))+1<<20 {
			t.Errorf("a manifest of %d bytes takes %d", len(text), n)
		}
		if err != nil {
			if ruleOf(err) == "" {
				t.Errorf("%v names no rule", err)
			}
			return
		}
		again, err := encodeManifest(m, codings, appendIndex)
		if err != nil {
			t.Fatal(err)
		}
		if !newer && !bytes.Equal(again, text) {
			t.Errorf("the canonical manifest\n%s is written as\n%s", text, again)
		}
		if _, _, err := parseManifest(string(again), false); err != nil {
			t.Errorf("a manifest that was read and written is refused: %v", err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	var c coder
	lib := library{}
	for _, p := range codedSamples() {
		p = p[:min(len(p), 2000)]
		f.Add(c.literals(nil, p, len(p)), uint32(len(p)), true)
		f.Add(lib.encode(nil, p), uint32(len(p)), false)
	}
	d := newDecoder(1)
	f.Fuzz(func(t *testing.T, p []byte, n uint32, fix bool) {
		n %= 1 << 18
		p = bytes.Clone(p)
		if fix {
			resum(p)
		}
		content := make([]byte, n)
		var err error
		if taken := allocated(func() { err = d.decode(content, p, 0) }); taken > promised(len(p)) {
			t.Errorf("a frame of %d bytes for %d takes %d bytes of memory", len(p), n, taken)
		}
		read, readErr := readFrame(bytes.NewReader(p), nil, 0, int64(n))
		if walkErr := walkFrame(p, 0, int64(n)); walkErr == nil && int64(len(p)) <= bound(int64(n)) && (readErr != nil || !bytes.Equal(read, p)) {
			t.Errorf("a frame that passes a walk is read as %d bytes, %v, want %d", len(read), readErr, len(p))
		}
		if err != nil {
			return
		}
		again := make([]byte, n)
		if err := d.decode(again, c.encode(nil, content, 1, &lib), 0); err != nil || !bytes.Equal(again, content) {
			t.Errorf("the content of an accepted frame does not survive: %v", err)
		}
	})
}

// largestSeed excludes the vectors about size, which slow every run down.
const largestSeed = 2048

func FuzzFile(f *testing.F) {
	files := seeds(f)
	for _, v := range testkit.Vectors(f, "../testdata") {
		p, err := os.ReadFile(v.Path)
		if err != nil {
			f.Fatal(err)
		}
		if len(p) <= largestSeed {
			files = append(files, p)
		}
	}
	for _, p := range files {
		f.Add(p, false)
		f.Add(p, true)
	}
	f.Fuzz(func(t *testing.T, p []byte, fix bool) {
		if fix {
			p = repaired(p)
		}
		var id string
		var verified error
		n := allocated(func() { id, verified = exercise(t, p) })
		if n > promised(len(p)) {
			t.Errorf("a file of %d bytes takes %d bytes of memory", len(p), n)
		}
		if verified != nil {
			if ruleOf(verified) == "" {
				t.Errorf("%v names no rule", verified)
			}
			return
		}
		r := opened(t, p)
		again, sum := written(t, r, smallChunks)
		if sum.ContentID != id {
			t.Errorf("a file that was read and written has the content id %s, want %s", sum.ContentID, id)
		}
		if err := verifyBytes(again); err != nil {
			t.Errorf("a file that was read and written is refused: %v", err)
		}
	})
}

// exercise puts a file through every reader and returns Verify's result.
func exercise(t *testing.T, p []byte) (id string, verified error) {
	sum, verified := Verify(context.Background(), bytes.NewReader(p), int64(len(p)), fuzzOptions)
	s, err := NewStreamReader(bytes.NewReader(p), fuzzOptions)
	if err == nil {
		_, err = s.each(context.Background(), func(int, int64, []byte) error { return nil })
	}
	if (err == nil) != (verified == nil) {
		t.Errorf("a stream says %v and Verify %v", err, verified)
	}
	r, err := NewReader(bytes.NewReader(p), int64(len(p)), fuzzOptions)
	if err != nil {
		if verified == nil {
			t.Errorf("NewReader refuses what Verify accepts: %v", err)
		}
	} else {
		buffer := make([]byte, 1000)
		for i := range len(r.plan.blobs) - 1 {
			n := min(r.plan.blobBytes(i), int64(len(buffer)))
			if err := r.ReadBlobAt(buffer[:n], i, r.plan.blobBytes(i)-n); err != nil && verified == nil {
				t.Errorf("ReadBlobAt fails in a file that Verify accepts: %v", err)
			}
		}
		r.Close()
	}
	if len(p) < 4096 { // a dump is many times as long as its file
		if err := Dump(t.Context(), io.Discard, bytes.NewReader(p), int64(len(p))); (err != nil) && verified == nil {
			t.Errorf("Dump finds %v in a file that Verify accepts", err)
		}
	}
	if verified == nil {
		id = sum.ContentID
	}
	return id, verified
}

// repaired corrects the checksums, lengths and digests of a file, as far as its structure can be
// recognised.
func repaired(p []byte) []byte {
	h, err := parseHead(p, fuzzOptions.MaxManifestBytes)
	if err != nil || h.frameBytes() > int64(len(p)) {
		return p
	}
	p = bytes.Clone(p)
	resum(p[headBytes:h.frameBytes()])
	pro, err := parsePrologue(h, p[:h.frameBytes()], fuzzOptions)
	if err != nil {
		return p
	}
	t := newTail(pro.plan.chunks)
	copy(t.headDigest(), pro.digest[:])
	t.setTotal(pro.plan.total)
	t.setEntry(0, pro.bytes, 0)
	sums := newBlobSums(pro.plan)
	d := newDecoder(1)
	defer d.close()
	var m room
	m.grow(pro.plan.largest)
	off := pro.bytes
	for i := range pro.plan.chunks {
		c := pro.plan.chunk(i)
		frame, err := readFrame(bytes.NewReader(p[off:]), nil, off, c.n)
		if err != nil {
			return p
		}
		resum(frame)
		copy(p[off:], frame)
		m.stored = append(m.stored[:0], frame...)
		if m.decode(d, c, i, off) != nil {
			return p
		}
		sums.whole(c, m.raw)
		sums.parts(c, m.raw)
		digest := sha256.Sum256(frame)
		copy(t.digest(i), digest[:])
		t.setEntry(i+1, int64(len(frame)), c.n)
		off += int64(len(frame))
	}
	id := contentID(pro.manifest, sums.sums)
	copy(t.contentID(), id[:])
	return append(p[:off:off], t.buf...)
}
