package safetensors

import (
	"bytes"

	"github.com/loratool/loratool/internal/fault"
)

// others are the files that are found under the name of a safetensors file, or given for one.
var others = []struct {
	magic      string
	what, hint string
}{
	{"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` in the repository, or download the file again"},
	{"<!DOCTYPE", "an HTML page", "the download brought a web page; fetch the file itself"},
	{"<!doctype", "an HTML page", "the download brought a web page; fetch the file itself"},
	{"<html", "an HTML page", "the download brought a web page; fetch the file itself"},
	{"PK\x03\x04", "a zip archive, which is how torch saves pickles", "save it as safetensors: model.save_pretrained(..., safe_serialization=True)"},
	{"\x80\x02", "a pickle", "save it as safetensors: model.save_pretrained(..., safe_serialization=True)"},
	{"\x80\x04\x95", "a pickle", "save it as safetensors: model.save_pretrained(..., safe_serialization=True)"},
	{"GGUF", "a GGUF file", "give the safetensors checkpoint that it was made from"},
	{"\x28\xb5\x2f\xfd", "zstd data", "decompress it first"},
	{"\x5a\x2a\x4d\x18", "a zstd file, perhaps a .lora container", ""},
	{"Entry not found", "the message of a server that has no such file", "check the name and fetch the file again"},
}

// Recognise returns an error that names what a file is when its first bytes are those of some other kind, else nil.
func Recognise(start []byte) *fault.Error {
	for _, o := range others {
		if bytes.HasPrefix(start, []byte(o.magic)) && !IsHeader(start) {
			return fault.New(fault.Unsupported, "this is %s, not a safetensors file", o.what).WithHint("%s", o.hint)
		}
	}
	if len(start) == 0 {
		return fault.New(fault.Truncated, "the file is empty").WithHint("it was not written or not downloaded; fetch it again")
	}
	return nil
}

// IsHeader tells a header whose length happens to spell a magic number from the file of that kind, by its first 11 bytes.
func IsHeader(start []byte) bool {
	return len(start) > 10 && start[6] == 0 && start[7] == 0 && start[8] == '{'
}
