package format

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/parallel"
)

// sum is a SHA-256.
type sum = [sha256.Size]byte

// readBytes is the size of one read where chunks do not dictate another.
const readBytes = 1 << 20

// ContentID identifies the adapters of a source by 64 hex digits. Two sources with the same
// adapters, layers and tensors have the same id, however they are stored (spec section 13).
// ContentID reads every tensor, in pieces of 1 MiB, on all processors.
func ContentID(ctx context.Context, src Source) (string, error) {
	m, err := checked(src.Manifest())
	if err != nil {
		return "", err
	}
	sums := make([]sum, len(m.Tensors))
	workers := parallel.Workers(0)
	buffers := make([][]byte, workers)
	err = parallel.For(ctx, workers, len(sums), func(worker, i int) error {
		if buffers[worker] == nil {
			buffers[worker] = make([]byte, readBytes)
		}
		var err error
		// The order of the source is that of its files, which are read ahead.
		sums[i], err = blobSum(ctx, src, i, m.Tensors[i].NBytes(), buffers[worker])
		return err
	})
	if err != nil {
		return "", err
	}
	id := contentID(&m.Manifest, sums)
	return hex.EncodeToString(id[:]), nil
}

// AdapterID identifies the one adapter of a source by the content id that it has alone and without
// a name. So the adapter has the same id in a file of its own and as a member of a bundle. For a
// source of several adapters AdapterID is ContentID.
func AdapterID(ctx context.Context, src Source) (string, error) {
	if m := src.Manifest(); m != nil && len(m.Adapters) == 1 && m.Adapters[0].Name != "" {
		alone, err := Select(src, m.Adapters[0].Name)
		if err != nil {
			return "", err
		}
		src = alone
	}
	return ContentID(ctx, src)
}

// contentID hashes the content document of a sorted manifest, one record after the other. sums
// holds the SHA-256 of every tensor.
func contentID(m *Manifest, sums []sum) (id sum) {
	h := sha256.New()
	e := encoder{index: func(dst []byte, i int) []byte {
		t := &m.Tensors[i]
		d := encoder{buf: dst}
		d.text(`{"dtype":`).str(t.DType.String()).text(`,"name":`).str(t.Name)
		d.text(`,"sha256":"`)
		d.buf = hex.AppendEncode(d.buf, sums[i][:])
		return d.text(`","shape":`).shape(t.Shape).text("}").buf
	}}
	flush := func() {
		h.Write(e.buf)
		e.buf = e.buf[:0]
	}
	e.text(`{"adapters":`)
	list(&e, m.Adapters, func(a *Adapter) {
		byName := slices.Clone(a.Beside)
		slices.SortFunc(byName, func(x, y Beside) int { return strings.Compare(m.Tensors[x.Tensor].Name, m.Tensors[y.Tensor].Name) })
		e.text(`{"beside":`)
		list(&e, byName, func(b *Beside) { e.beside(b); flush() })
		e.text(`,"layers":`)
		list(&e, a.Layers, func(l *Layer) { e.layer(l); flush() })
		e.text(`,"method":`).str(string(a.Method)).text(`,"name":`).str(a.Name).text(`,"requires":`)
		list(&e, a.Requires, func(r *Requirement) { e.requirement(r); flush() })
		e.text("}")
	})
	e.text(`,"content":1}`)
	flush()
	h.Sum(id[:0])
	return id
}

// blobSums computes the SHA-256 of every blob from the chunks of a file. A blob inside one chunk is
// hashed in parallel with others; a blob that spans chunks is hashed in their order.
type blobSums struct {
	plan *plan
	sums []sum
	open hash.Hash // the hash of the blob that spans chunks
}

func newBlobSums(p *plan) *blobSums {
	b := &blobSums{plan: p, sums: make([]sum, len(p.blobs)-1), open: sha256.New()}
	empty := sha256.Sum256(nil)
	for i := range b.sums {
		if p.blobBytes(i) == 0 {
			b.sums[i] = empty
		}
	}
	return b
}

// whole hashes the blobs that lie entirely in chunk c, whose raw bytes are p. Calls for different
// chunks may run at once.
func (b *blobSums) whole(c chunk, p []byte) {
	for piece := range b.plan.pieces(c) {
		if n := piece.hi - piece.lo; n == b.plan.blobBytes(piece.blob) {
			b.sums[piece.blob] = sha256.Sum256(p[piece.lo:piece.hi])
		}
	}
}

// parts hashes the pieces of longer blobs in chunk c. Calls must follow the order of the chunks.
func (b *blobSums) parts(c chunk, p []byte) {
	for piece := range b.plan.pieces(c) {
		n, all := piece.hi-piece.lo, b.plan.blobBytes(piece.blob)
		if n == all {
			continue
		}
		if piece.off == 0 {
			b.open.Reset()
		}
		b.open.Write(p[piece.lo:piece.hi])
		if piece.off+n == all {
			b.open.Sum(b.sums[piece.blob][:0])
		}
	}
}

// Fingerprint identifies a tensor of a base model, for Base.Fingerprints: the SHA-256, as 64 hex
// digits, of a line with dtype and shape followed by the tensor's bytes (spec section 7.2). It
// reads r to its end; a length that does not fit t and shape is an error.
func Fingerprint(t dtype.Type, shape []uint64, r io.Reader) (string, error) {
	h := sha256.New()
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = fmt.Sprint(d)
	}
	fmt.Fprintf(h, "%v %s\n", t, strings.Join(dims, ","))
	elements, ok := dtype.NElements(shape)
	want, ok2 := t.NBytes(elements)
	if !ok || !ok2 {
		return "", broken(52, "%v of shape %d is not a whole number of bytes", t, shape)
	}
	n, err := io.Copy(h, r)
	if err != nil {
		return "", err
	}
	if n != want {
		return "", fmt.Errorf("%v of shape %d takes %d bytes, got %d", t, shape, want, n)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
