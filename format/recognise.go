package format

import (
	"bytes"
	"strings"

	"github.com/loratool/loratool/internal/safetensors"
)

// Hints for a file of another format.
const (
	hintRefetch     = "the file was not written or downloaded completely; fetch it again"
	hintNewer       = "a newer version of the program may read it"
	hintTextMode    = "the file was transferred in text mode; transfer it again in binary mode"
	hintSafetensors = "this is a safetensors file; convert.Create writes it as a .lora file"
	hintZstd        = "this is zstd data without the signature of a .lora file; if a .lora file was compressed again, decompress it first"
)

// recognise returns the error for a file that does not begin like a .lora file, with a hint that
// names its format.
func recognise(p []byte) error {
	e := broken(3, "the file begins with % x, not with the signature of a .lora file", p[:sigBytes])
	after := p[min(len(p), skipBytes):]
	switch {
	case bytes.HasPrefix(after, []byte("\x89LRA\n\x1a\n")), bytes.HasPrefix(after, []byte("\x89LRA\r\r\n")),
		bytes.HasPrefix(after, []byte("\x89LRA\r\n\x1a\r\n")):
		return e.WithHint(hintTextMode)
	case p[8] == '{':
		return e.WithHint(hintSafetensors)
	case le.Uint32(p) == frameMagic || le.Uint32(p)&^0xF == 0x184D2A50:
		return e.WithHint(hintZstd)
	}
	if other := safetensors.RecogniseFile(p); other != nil {
		what := strings.Replace(other.Msg, ", not a safetensors file", "", 1)
		return e.WithHint("%s", strings.TrimSuffix(what+": "+other.Hint, ": "))
	}
	return e
}
