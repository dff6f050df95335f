package convert

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
)

// Hashes are the digests, in lower-case hexadecimal, by which programs for image models know the
// file of an adapter. "" stands for a digest that the file does not have.
type Hashes struct {
	// File is the SHA-256 of the whole file. Its first 10 digits are the AutoV2 of Civitai.
	File string
	// AutoV1 is the first 8 digits of the SHA-256 of 64 KiB of the file after its first MiB.
	AutoV1 string
	// Data is the SHA-256 of all bytes behind the header. Its first 12 digits are the AutoV3 of
	// Civitai, and "0x" and Data is modelspec.hash_sha256 (ModelSpec 1.0.1).
	Data string
	// Model is sshs_model_hash of sd-scripts: the Data of the file that the format's own writer
	// would make of the same tensors. It differs from Data if theirs are in another order.
	Model string
	// Legacy is sshs_legacy_hash of sd-scripts: the AutoV1 of the file that the format's own writer
	// would make with only the entries ss_* as metadata. That writer leaves the order of the
	// entries to chance; "" means that the digest depends on it, because they reach beyond the
	// first MiB.
	Legacy string
}

// HashesOf computes the hashes of the file that src was read from, which is also possible for a
// container made from a safetensors file. A pickle has only File and AutoV1. HashesOf reads the
// whole file, and twice if its tensors are not in the order of the format's own writer. A container
// without the header of its source is an error of kind format.ErrUnsupported.
func HashesOf(ctx context.Context, src format.Source) (Hashes, error) {
	file, autoV1 := sha256.New(), newWindow()
	if in := pickleOf(src); in != nil {
		if err := in.copyTo(ctx, io.MultiWriter(file, autoV1)); err != nil {
			return Hashes{}, err
		}
		return Hashes{File: digits(file), AutoV1: autoV1.digits()}, nil
	}
	header, err := sourceHeader(ctx, src)
	if err != nil {
		return Hashes{}, err
	}
	if header == nil {
		return Hashes{}, fault.New(fault.Unsupported, "the adapter was not made from one safetensors "+
			"file, so there is no file to hash")
	}
	data, tensors := sha256.New(), src.Manifest().Tensors
	writers := []io.Writer{file, autoV1, &behind{header.DataOff, data}}
	start := newCanonicalStart(tensors, header.Metadata)
	isCanonical := slices.IsSortedFunc(header.Tensors, func(a, b safetensors.Tensor) int {
		return safetensors.CompareData(a.DType, b.DType, a.Name, b.Name)
	})
	if isCanonical {
		writers = append(writers, &behind{header.DataOff, start})
	}
	if err := Restore(ctx, io.MultiWriter(writers...), src, 0); err != nil {
		return Hashes{}, err
	}
	h := Hashes{File: digits(file), AutoV1: autoV1.digits(), Data: digits(data)}
	if isCanonical {
		h.Model, h.Legacy = h.Data, start.legacy()
		return h, nil
	}
	h.Model, h.Legacy, err = modelHashes(ctx, tensors, header.Metadata, src.ReadBlobAt)
	return h, err
}

// SourceMetadata returns __metadata__ from the header of the safetensors file that src was read or
// converted from; nil if there is none.
func SourceMetadata(ctx context.Context, src format.Source) (map[string]string, error) {
	header, err := sourceHeader(ctx, src)
	if header == nil {
		return nil, err
	}
	return header.Metadata, nil
}

// sourceHeader reads the header of the file that a single adapter was read from; nil if src does
// not carry it.
func sourceHeader(ctx context.Context, src format.Source) (*safetensors.Header, error) {
	m := src.Manifest()
	at, err := findAttachment(m, format.SourceHeader)
	if err != nil || at < 0 {
		return nil, err
	}
	raw := &blob{src: src, i: len(m.Tensors) + at, size: m.Attachments[at].NBytes}
	h, err := safetensors.ReadStart(ctx, raw, raw.size)
	switch {
	case raw.err != nil:
		return nil, raw.err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, broken("R67", "%s is not a safetensors header: %v", format.SourceHeader, err)
	}
	return h, nil
}

// pickleOf returns the pickle that src was read from, or nil.
func pickleOf(src format.Source) *table {
	if s, ok := src.(*opened); ok {
		if f, ok := s.Source.(*tensorFile); ok && f.pickle != nil {
			return f.table
		}
	}
	return nil
}

// legacyFrom and legacyBytes are the part of a file that its legacy hash covers.
const legacyFrom, legacyBytes = 1 << 20, 1 << 16

// modelHashes computes what sd-scripts calls the model hash and the legacy hash of tensors, from
// their data in the order of the format's own writer (sd-scripts, library/train_util.py,
// precalculate_safetensors_hashes). read fills p with the bytes of tensor i from offset off.
func modelHashes(
	ctx context.Context, tensors []format.Tensor, metadata map[string]string,
	read func(p []byte, i int, off int64) error,
) (model, legacy string, err error) {
	sum, start := sha256.New(), newCanonicalStart(tensors, metadata)
	both := io.MultiWriter(sum, start)
	piece := make([]byte, 1<<18)
	for _, i := range start.order {
		for off, n := int64(0), tensors[i].NBytes(); off < n; off += int64(len(piece)) {
			p := piece[:min(int64(len(piece)), n-off)]
			if err := cmp.Or(ctx.Err(), read(p, i, off)); err != nil {
				return "", "", err
			}
			both.Write(p)
		}
	}
	return digits(sum), start.legacy(), nil
}

// canonicalStart hashes the start of the file that the format's own writer would make of tensors,
// with only the entries ss_* as metadata. Its caller writes the data of the tensors, in this order.
type canonicalStart struct {
	window
	order []int
	isBad bool // the hash depends on the order of the metadata
}

func newCanonicalStart(tensors []format.Tensor, metadata map[string]string) *canonicalStart {
	s := &canonicalStart{window: *newWindow(), order: make([]int, len(tensors))}
	for i := range tensors {
		s.order[i] = i
	}
	slices.SortFunc(s.order, func(i, j int) int {
		a, b := &tensors[i], &tensors[j]
		return safetensors.CompareData(a.DType, b.DType, a.Name, b.Name)
	})
	training := make(map[string]string)
	for key, value := range metadata {
		if strings.HasPrefix(key, trainingPrefix) {
			training[key] = value
		}
	}
	s.isBad = len(training) > 1 && len(safetensors.Compose(nil, training)) > legacyFrom
	entries := make([]safetensors.Tensor, len(tensors))
	for k, i := range s.order {
		t := &tensors[i]
		entries[k] = safetensors.Tensor{
			Name: t.Name, DType: t.DType, Shape: t.Shape, NBytes: t.NBytes(),
		}
	}
	s.Write(safetensors.Compose(entries, training))
	return s
}

func (s *canonicalStart) legacy() string {
	if s.isBad {
		return ""
	}
	return s.digits()
}

// window hashes the part of a stream that a legacy hash covers.
type window struct {
	sum hash.Hash
	at  int64 // in the stream
}

func newWindow() *window { return &window{sum: sha256.New()} }

func (w *window) Write(p []byte) (int, error) {
	n := int64(len(p))
	from, to := max(legacyFrom-w.at, 0), min(legacyFrom+legacyBytes-w.at, n)
	if from < to {
		w.sum.Write(p[from:to])
	}
	w.at += n
	return len(p), nil
}

func (w *window) digits() string { return digits(w.sum)[:8] }

// behind hashes a stream without its first bytes.
type behind struct {
	skip int64
	w    io.Writer
}

func (b *behind) Write(p []byte) (int, error) {
	n := min(b.skip, int64(len(p)))
	b.skip -= n
	if _, err := b.w.Write(p[n:]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func digits(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
