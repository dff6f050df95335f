package report

import (
	"context"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
)

// Hashes are the hashes by which programs for image models know the file of an adapter, in
// lower-case hexadecimal. A pickle has only SHA256, AutoV1 and AutoV2.
type Hashes struct {
	SHA256 string       `json:"sha256"` // of the whole file
	AutoV1 string       `json:"autov1"` // these three are those of Civitai
	AutoV2 string       `json:"autov2"`
	AutoV3 string       `json:"autov3"`
	Header []HeaderHash `json:"header"`
}

// HeaderHash is a hash that the header of a file may state of the file's own tensors.
type HeaderHash struct {
	Entry string `json:"entry"` // of __metadata__
	Hash  string `json:"hash"`  // computed; "" if it is not determined (convert.Hashes)
	Found string `json:"found"` // in the header; "" if the entry is missing
	// Verdict is "right", "wrong", "missing" if the header does not have it, or "unknown" if it
	// cannot be computed.
	Verdict string `json:"verdict"`
}

// addHashes computes the hashes of the file and compares those of its header.
func (r *Adapter) addHashes(ctx context.Context, src format.Source) error {
	h, err := convert.HashesOf(ctx, src)
	if err != nil {
		return err
	}
	r.Hashes = &Hashes{
		SHA256: h.File, AutoV1: h.AutoV1, AutoV2: h.File[:10], Header: []HeaderHash{},
	}
	if h.Data == "" {
		return nil
	}
	r.Hashes.AutoV3 = h.Data[:12]
	for _, e := range []struct{ entry, hash string }{
		{"sshs_model_hash", h.Model}, {"sshs_legacy_hash", h.Legacy},
		{"modelspec.hash_sha256", "0x" + h.Data},
	} {
		found := r.Metadata[e.entry]
		r.Hashes.Header = append(r.Hashes.Header,
			HeaderHash{e.entry, e.hash, cut(found), verdictOn(found, e.hash)})
	}
	return nil
}

// verdictOn compares a hash in a header with the computed one.
func verdictOn(found, hash string) string {
	digits := func(s string) string { return strings.TrimPrefix(strings.ToLower(s), "0x") }
	switch {
	case found == "":
		return "missing"
	case hash == "":
		return "unknown"
	case digits(found) == digits(hash):
		return "right"
	}
	return "wrong"
}
