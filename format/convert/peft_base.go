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

// baseKey is the entry of __metadata__ under which a weights file of PEFT keeps the fingerprints of
// its base: JSON, from the name of a tensor of the base to the digest of spec/FORMAT.md, section
// 7.2. PEFT ignores it.
const baseKey = "loratool.base"

// digest is a fingerprint as the specification writes it.
var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// baseOf reads the fingerprints that the metadata of a weights file hold, nil where there are none.
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

// metadataOf is the metadata of a weights file of our making: what the file had that the adapter
// was read from, and the fingerprints of the base.
func metadataOf(src format.Source) (map[string]string, error) {
	all := map[string]string{"format": "pt"}
	header, err := attachment(src, format.SourceHeader)
	if err != nil {
		return nil, err
	}
	if header != nil {
		h, err := safetensors.ReadAlone(header)
		if err != nil {
			return nil, broken("R67", "%s is not a header of safetensors: %v", format.SourceHeader, err)
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

// restoreOr returns the writer of the weights of a source that carries the header they were read
// from: the same bytes, unless the source was given another base to remember.
func restoreOr(ctx context.Context, src format.Source) (func(io.Writer) error, error) {
	if _, ok := src.(*described); ok {
		return keepKeys(ctx, src)
	}
	return func(w io.Writer) error { return Restore(ctx, w, src, 0) }, nil
}
