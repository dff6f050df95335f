package safetensors

import (
	"bytes"

	"github.com/loratool/loratool/internal/fault"
)

// others lists other kinds of file that users give in place of a safetensors file or its
// configuration, by their first bytes.
var others = []struct{ magic, what, hint string }{
	{"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` in the repository, or download the file again"},
	{"<!DOCTYPE", "an HTML page, not the file itself", hintPage},
	{"<!doctype", "an HTML page, not the file itself", hintPage},
	{"<html", "an HTML page, not the file itself", hintPage},
	{"<HTML", "an HTML page, not the file itself", hintPage},
	{"<?xml", "an XML text, perhaps the error of a server, not the file itself", hintPage},
	{"Entry not found", "the message of a server that has no such file", "check the name and fetch the file again"},
	{"PK\x03\x04", "a zip archive, not a safetensors file", "unpack it first; of a checkpoint of torch, save the tensors as safetensors"},
	{"\x1f\x8b", "a gzip archive, not a safetensors file", "unpack it first"},
	{"7z\xbc\xaf\x27\x1c", "a 7z archive, not a safetensors file", "unpack it first"},
	{"\x89HDF", "an HDF5 file, of Keras or TensorFlow, not a safetensors file", hintOriginal},
	{"\x93NUMPY", "a NumPy array (.npy), not a safetensors file", "save its tensors as safetensors, by name"},
	{"\x80\x02", "a pickle, not a safetensors file", hintPickle},
	{"\x80\x04\x95", "a pickle, not a safetensors file", hintPickle},
	{"%PDF", "a PDF document, not a safetensors file", hintWeights},
	{"\x89PNG", "an image, not a safetensors file", hintWeights},
	{"\xff\xd8\xff", "an image, not a safetensors file", hintWeights},
	{"GGUF", "a GGUF file, not a safetensors file", hintOriginal},
	{"\x28\xb5\x2f\xfd", "zstd data, not a safetensors file", "decompress it first"},
	{"\x5a\x2a\x4d\x18", "a zstd file, perhaps a .lora container, not a safetensors file", "a .lora file is an adapter; give a checkpoint here"},
}

const (
	hintPage     = "the download brought a web page; fetch the file itself"
	hintOriginal = "give the safetensors files that it was made from"
	hintWeights  = "give the weights of the model or of the adapter, or their directory"
	hintAgain    = "check the name and the access to it, and fetch the file again"
	hintPickle   = "save it as safetensors: model.save_pretrained(..., safe_serialization=True)"
)

// Recognise returns an error that names the kind of a file, if its first bytes are those of a known
// other kind, and nil otherwise.
func Recognise(start []byte) *fault.Error {
	if !IsHeader(start) && bytes.HasPrefix(start, []byte("PK\x03\x04")) && bytes.Contains(start, []byte("data.pkl")) {
		return fault.New(fault.Unsupported, "this is a zip archive, in which torch saves pickles, not a safetensors file").
			WithHint(hintPickle)
	}
	text := bytes.TrimLeft(start, " \t\r\n\ufeff")
	for _, o := range others {
		if bytes.HasPrefix(text, []byte(o.magic)) && !IsHeader(start) {
			return fault.New(fault.Unsupported, "this is %s", o.what).WithHint("%s", o.hint)
		}
	}
	if len(text) == 0 && len(start) < maxBlankBytes {
		return fault.New(fault.Truncated, "the file is empty").WithHint("it was not written or not downloaded; fetch it again")
	}
	return nil
}

// maxBlankBytes is the length from which white space no longer counts as an empty file.
const maxBlankBytes = 64

// IsHeader reports from the first 11 bytes that a file begins with a safetensors header. The length
// of a header can spell the magic number of another kind of file.
func IsHeader(start []byte) bool {
	return len(start) > 10 && start[6] == 0 && start[7] == 0 && start[8] == '{'
}

// RecogniseFile is Recognise for a file that should hold weights, which no text does.
func RecogniseFile(start []byte) *fault.Error {
	if e := Recognise(start); e != nil || len(start) == 0 || IsHeader(start) {
		return e
	}
	text := start[:min(len(start), 48)]
	switch {
	case bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")):
		return fault.New(fault.Unsupported, "this is a JSON text, not a safetensors file: it begins with %q", text).
			WithHint("give the weights, or their directory; if this was downloaded as such, " + hintAgain)
	case isText(text) && (bytes.HasPrefix(text, []byte("# ")) || bytes.HasPrefix(text, []byte("---\n"))):
		return fault.New(fault.Unsupported, "this is a Markdown text, perhaps a model card, not a safetensors file").WithHint(hintWeights)
	case len(start) >= 16 && isText(text):
		return fault.New(fault.Unsupported, "this is a text, not a safetensors file: it begins with %q", text).
			WithHint("a server may have sent it in place of the file: " + hintAgain)
	case len(start) >= 16 && len(bytes.TrimLeft(start, "\x00")) == 0:
		return fault.New(fault.Truncated, "the file begins with zeros, like space that was reserved but not written").
			WithHint("it was not written or downloaded completely; fetch it again")
	}
	return nil
}

// isText reports whether all bytes are ASCII text.
func isText(p []byte) bool {
	for _, c := range p {
		if c > '~' || c < ' ' && c != '\n' && c != '\r' && c != '\t' {
			return false
		}
	}
	return true
}
