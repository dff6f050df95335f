package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/safetensors"
)

// baseKey is the entry of __metadata__ in which a file of weights that we write for PEFT keeps the
// fingerprints of its base: a JSON object from the base's tensor names to digests (spec/FORMAT.md,
// section 7.2). PEFT ignores the entry.
const baseKey = "loratool.base"

// digest matches a fingerprint.
var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// baseOf returns the fingerprints in the metadata of a file of weights, nil if there are none.
func baseOf(metadata map[string]string) (map[string]string, error) {
	text, ok := metadata[baseKey]
	if !ok {
		return nil, nil
	}
	var prints map[string]string
	err := jsontext.Decode([]byte(text), &prints)
	for name, value := range prints {
		if err == nil {
			err = checkName(name)
		}
		if err == nil && !digest.MatchString(value) {
			err = fmt.Errorf("the fingerprint of %q is %q, want 64 hexadecimal digits", name, value)
		}
	}
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the metadata entry %q does not hold the fingerprints of a base: %v", baseKey, err).
			WithHint("extract or convert the adapter again")
	}
	return prints, nil
}

// metadataOf returns the metadata for a file of weights that we write: the metadata of the
// adapter's source file, and the fingerprints of the base.
func metadataOf(src format.Source) (map[string]string, error) {
	all := map[string]string{"format": "pt"}
	header, err := attachment(src, format.SourceHeader)
	if err != nil {
		return nil, err
	}
	if header != nil {
		h, err := safetensors.ReadAlone(header)
		if err != nil {
			return nil, broken("R67", "%s is not a safetensors header: %v", format.SourceHeader, err)
		}
		maps.Copy(all, h.Metadata)
	}
	delete(all, baseKey)
	if prints := src.Manifest().Adapters[0].Base.Fingerprints; len(prints) > 0 {
		text, err := json.Marshal(prints)
		if err != nil {
			return nil, err
		}
		all[baseKey] = string(text)
	}
	return all, nil
}

// restoreOr returns the writer of the weights of a source that carries the header of its source
// file. It restores the same bytes, unless WithBase gave the source another base to record.
func restoreOr(ctx context.Context, src format.Source) (func(io.Writer) error, error) {
	if _, ok := src.(*described); ok {
		return keepKeys(ctx, src)
	}
	return func(w io.Writer) error { return Restore(ctx, w, src, 0) }, nil
}
