package safetensors

import (
	"bytes"

	"github.com/loratool/loratool/internal/fault"
)

// others are the files that are found under the name of a safetensors file or of its configuration, or given for one.
var others = []struct{ magic, what, hint string }{
	{"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` in the repository, or download the file again"},
	{"<!DOCTYPE", "an HTML page, not the file itself", hintPage},
	{"<!doctype", "an HTML page, not the file itself", hintPage},
	{"<html", "an HTML page, not the file itself", hintPage},
	{"<HTML", "an HTML page, not the file itself", hintPage},
	{"<?xml", "an XML text, perhaps the error of a server, not the file itself", hintPage},
	{"Entry not found", "the message of a server that has no such file", "check the name and fetch the file again"},
	{"PK\x03\x04", "a zip archive, which is how torch saves pickles, not a safetensors file", hintPickle},
	{"\x80\x02", "a pickle, not a safetensors file", hintPickle},
	{"\x80\x04\x95", "a pickle, not a safetensors file", hintPickle},
	{"GGUF", "a GGUF file, not a safetensors file", "give the safetensors checkpoint that it was made from"},
	{"\x28\xb5\x2f\xfd", "zstd data, not a safetensors file", "decompress it first"},
	{"\x5a\x2a\x4d\x18", "a zstd file, perhaps a .lora container, not a safetensors file", ""},
}

const (
	hintPage   = "the download brought a web page; fetch the file itself"
	hintPickle = "save it as safetensors: model.save_pretrained(..., safe_serialization=True)"
)

// Recognise returns an error that names what a file is when its first bytes are those of some other kind, else nil.
func Recognise(start []byte) *fault.Error {
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

// maxBlankBytes is the length from which white space is no empty file.
const maxBlankBytes = 64

// IsHeader tells a header whose length happens to spell a magic number from the file of that kind, by its first 11 bytes.
func IsHeader(start []byte) bool {
	return len(start) > 10 && start[6] == 0 && start[7] == 0 && start[8] == '{'
}
