package safetensors_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
)

// mark stands in a header where its error has to point; it is no part of the header.
const mark = "‸"

// u8 is an entry of n bytes from begin on.
func u8(name string, begin, n int) string {
	return fmt.Sprintf(`%q:{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}`, name, n, begin, begin+n)
}

// entry is a tensor "a" whose fields are spelled out.
func entry(fields string) string { return `{"a":{` + fields + `}}` }

func shaped(d, shape string, n int) string {
	return entry(fmt.Sprintf(`"dtype":"%s","shape":%s,"data_offsets":[0,%d]`, d, shape, n))
}

// refused break one rule each. Where the header holds a mark the error names that byte.
var refused = []struct {
	name   string
	header string
	nData  int
	kind   error
	words  string
}{
	// Names.
	{"tensor name twice", "{" + u8("a", 0, 1) + "," + mark + u8("a", 1, 1) + "}", 2, fault.Corrupt, `the name "a" appears twice`},
	{"tensor name twice, the same bytes", "{" + u8("a", 0, 1) + "," + mark + u8("a", 0, 1) + "}", 1, fault.Corrupt, `the name "a" appears twice`},
	{"tensor name twice, once escaped", `{` + u8("a", 0, 1) + `,` + mark + `"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, fault.Corrupt, `the name "a" appears twice`},
	{"metadata twice", `{"__metadata__":{},` + mark + `"__metadata__":{}}`, 0, fault.Corrupt, "twice"},
	{"metadata key twice", `{"__metadata__":{"k":"1",` + mark + `"k":"2"}}`, 0, fault.Corrupt, `the key "k" twice`},

	// Text.
	{"invalid UTF-8 in a name", "{" + u8("a", 0, 1)[:2] + mark + "\xff" + u8("a", 0, 1)[2:] + "}", 1, fault.Corrupt, "not UTF-8"},
	{"overlong UTF-8", "{\"a" + mark + "\xc0\xaf\":" + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "not UTF-8"},
	{"surrogate in UTF-8", "{\"a" + mark + "\xed\xa0\x80\":" + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "not UTF-8"},
	{"invalid UTF-8 in metadata", "{\"__metadata__\":{\"k\":\"" + mark + "\x80\"}}", 0, fault.Corrupt, "not UTF-8"},
	{"invalid UTF-8 in the padding", "{}" + mark + "\xff", 0, fault.Corrupt, "not UTF-8"},
	{"high surrogate alone", `{"a` + mark + `\ud800":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "half a surrogate pair"},
	{"low surrogate alone", `{"a` + mark + `\udc00":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "half a surrogate pair"},
	{"two high surrogates", `{"a` + mark + `\ud800\ud800":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "half a surrogate pair"},
	{"high surrogate before a letter", `{"a` + mark + `\ud800x":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "half a surrogate pair"},
	{"unknown escape", `{"a` + mark + `\x41":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "invalid escape"},
	{"escape with a sign", `{"a` + mark + `\u+041":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "invalid escape"},
	{"escape with an underscore", `{"a` + mark + `\u0_41":` + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "invalid escape"},
	{"escape cut off", `{"` + mark + `\u00`, 0, fault.Corrupt, "invalid escape"},
	{"escape cut off after the backslash", `{"` + mark + `\`, 0, fault.Corrupt, "has no end"},
	{"control character", "{\"a" + mark + "\x01\":" + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "control character"},
	{"newline in a name", "{\"a" + mark + "\n\":" + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "control character"},
	{"control character after an escape", "{\"\\n" + mark + "\x1f\":" + u8("a", 0, 1)[4:] + "}", 1, fault.Corrupt, "control character"},
	{"NUL in the padding", "{}" + mark + "\x00", 0, fault.Corrupt, "after the header object"},
	{"string without an end", `{` + mark + `"a`, 0, fault.Corrupt, "has no end"},
	{"escaped string without an end", `{` + mark + `"a\n`, 0, fault.Corrupt, "has no end"},
	{"byte order mark", "\ufeff{}", 0, fault.Corrupt, "want '{'"},
	{"white space first", " {}", 0, fault.Corrupt, "want '{'"},

	// The object.
	{"null", "null", 0, fault.Corrupt, "want '{'"},
	{"array", "[]", 0, fault.Corrupt, "want '{'"},
	{"string", `""`, 0, fault.Corrupt, "want '{'"},
	{"two objects", "{}" + mark + "{}", 0, fault.Corrupt, "after the header object"},
	{"object without an end", "{" + u8("a", 0, 1) + mark, 1, fault.Corrupt, "the text ends, want"},
	{"comma at the end", "{" + u8("a", 0, 1) + "," + mark + "}", 1, fault.Corrupt, `want '"'`},
	{"comma missing", "{" + u8("a", 0, 1) + mark + u8("b", 1, 1) + "}", 2, fault.Corrupt, "want ','"},
	{"colon missing", `{"a"` + mark + `{}}`, 0, fault.Corrupt, "want ':'"},
	{"name without quotes", "{" + mark + "a:{}}", 0, fault.Corrupt, `want '"'`},
	{"comment", "{" + mark + "/**/}", 0, fault.Corrupt, `want '"'`},
	{"form feed as white space", "{" + mark + "\f}", 0, fault.Corrupt, `want '"'`},
	{"no-break space as white space", "{" + mark + "\u00a0}", 0, fault.Corrupt, `want '"'`},

	// Fields.
	{"unknown field", entry(`"dtype":"U8","shape":[0],` + mark + `"data_offset":[0,0],"data_offsets":[0,0]`), 0, fault.Corrupt, `unknown field "data_offset"`},
	{"field in capitals", entry(mark + `"DType":"U8","shape":[0],"data_offsets":[0,0]`), 0, fault.Corrupt, `unknown field "DType"`},
	{"dtype missing", entry(`"shape":[0],"data_offsets":[0,0]`), 0, fault.Corrupt, "lacks"},
	{"shape missing", entry(`"dtype":"U8","data_offsets":[0,0]`), 0, fault.Corrupt, "lacks"},
	{"data_offsets missing", entry(`"dtype":"U8","shape":[0]`), 0, fault.Corrupt, "lacks"},
	{"no field", entry(``), 0, fault.Corrupt, "lacks"},
	{"field twice", entry(`"dtype":"U8",` + mark + `"dtype":"U8","shape":[0],"data_offsets":[0,0]`), 0, fault.Corrupt, `the field "dtype" twice`},
	{"shape twice", entry(`"shape":[1],"dtype":"U8",` + mark + `"shape":[1],"data_offsets":[0,1]`), 1, fault.Corrupt, `the field "shape" twice`},
	{"tensor null", `{"a":` + mark + `null}`, 0, fault.Corrupt, "want '{'"},
	{"tensor an array", `{"a":` + mark + `[]}`, 0, fault.Corrupt, "want '{'"},
	{"dtype null", entry(`"dtype":` + mark + `null`), 0, fault.Corrupt, `want '"'`},
	{"shape null", entry(`"dtype":"U8","shape":` + mark + `null`), 0, fault.Corrupt, "want '['"},
	{"shape an object", entry(`"dtype":"U8","shape":` + mark + `{}`), 0, fault.Corrupt, "want '['"},
	{"metadata value a number", `{"__metadata__":{"k":` + mark + `1}}`, 0, fault.Corrupt, `want '"'`},
	{"metadata value an object", `{"__metadata__":{"k":` + mark + `{}}}`, 0, fault.Corrupt, `want '"'`},
	{"unknown dtype", entry(mark + `"dtype":"F128","shape":[0],"data_offsets":[0,0]`), 0, fault.Unsupported, `unknown dtype "F128"`},
	{"dtype in lower case", entry(mark + `"dtype":"u8","shape":[0],"data_offsets":[0,0]`), 0, fault.Unsupported, `unknown dtype "u8"`},
	{"no data_offset", entry(`"dtype":"U8","shape":[0],` + mark + `"data_offsets":[]`), 0, fault.Corrupt, "want begin and end"},
	{"one data_offset", entry(`"dtype":"U8","shape":[0],` + mark + `"data_offsets":[0]`), 0, fault.Corrupt, "want begin and end"},
	{"three data_offsets", entry(`"dtype":"U8","shape":[0],` + mark + `"data_offsets":[0,0,0]`), 0, fault.Corrupt, "more than two"},
	{"data_offsets backwards", entry(`"dtype":"U8","shape":[0],` + mark + `"data_offsets":[1,0]`), 0, fault.Corrupt, "want begin and end"},

	// Numbers.
	{"leading zero", entry(`"dtype":"U8","shape":[` + mark + `01],"data_offsets":[0,1]`), 1, fault.Corrupt, "non-negative integer"},
	{"two zeros", entry(`"dtype":"U8","shape":[` + mark + `00],"data_offsets":[0,0]`), 0, fault.Corrupt, "non-negative integer"},
	{"thirty zeros", entry(`"dtype":"U8","shape":[` + mark + strings.Repeat("0", 30) + `],"data_offsets":[0,0]`), 0, fault.Corrupt, "non-negative integer"},
	{"minus one", entry(`"dtype":"U8","shape":[` + mark + `-1],"data_offsets":[0,0]`), 0, fault.Corrupt, "non-negative integer"},
	{"minus zero", entry(`"dtype":"U8","shape":[` + mark + `-0],"data_offsets":[0,0]`), 0, fault.Corrupt, "non-negative integer"},
	{"plus sign", entry(`"dtype":"U8","shape":[` + mark + `+1],"data_offsets":[0,1]`), 1, fault.Corrupt, "non-negative integer"},
	{"fraction", entry(`"dtype":"U8","shape":[1` + mark + `.0],"data_offsets":[0,1]`), 1, fault.Corrupt, "want ','"},
	{"exponent", entry(`"dtype":"U8","shape":[1` + mark + `e0],"data_offsets":[0,1]`), 1, fault.Corrupt, "want ','"},
	{"number in quotes", entry(`"dtype":"U8","shape":[` + mark + `"1"],"data_offsets":[0,1]`), 1, fault.Corrupt, "non-negative integer"},
	{"null in a shape", entry(`"dtype":"U8","shape":[` + mark + `null],"data_offsets":[0,1]`), 1, fault.Corrupt, "non-negative integer"},
	{"comma at the end of a shape", entry(`"dtype":"U8","shape":[1,` + mark + `],"data_offsets":[0,1]`), 1, fault.Corrupt, "non-negative integer"},
	{"2^63 in a shape", entry(`"dtype":"U8","shape":[0,` + mark + `9223372036854775808],"data_offsets":[0,0]`), 0, fault.Corrupt, "below 2^63"},
	{"2^64 in a shape", entry(`"dtype":"U8","shape":[0,` + mark + `18446744073709551616],"data_offsets":[0,0]`), 0, fault.Corrupt, "below 2^63"},
	{"2^64+1 as an offset", entry(`"dtype":"U8","shape":[1],"data_offsets":[0,` + mark + `18446744073709551617]`), 1, fault.Corrupt, "below 2^63"},
	{"forty digits", entry(`"dtype":"U8","shape":[` + mark + strings.Repeat("1", 40) + `],"data_offsets":[0,1]`), 1, fault.Corrupt, "below 2^63"},

	// Shapes and sizes.
	{"product overflows at the end", shaped("U8", "[4294967296,4294967296]", 0), 0, fault.Corrupt, "not a whole number of bytes that a file can hold"},
	{"product overflows with the zero last", shaped("U8", "[4294967296,4294967296,0]", 0), 0, fault.Corrupt, "not a whole number of bytes"},
	{"product overflows with the zero first", shaped("U8", "[0,4294967296,4294967296]", 0), 0, fault.Corrupt, "not a whole number of bytes"},
	{"product overflows with the zero between", shaped("U8", "[4294967296,0,4294967296]", 0), 0, fault.Corrupt, "not a whole number of bytes"},
	{"product wraps to one", shaped("U8", "[9223372036854775807,9223372036854775807]", 1), 1, fault.Corrupt, "not a whole number of bytes"},
	{"bytes overflow", shaped("F64", "[2305843009213693952]", 0), 0, fault.Corrupt, "not a whole number of bytes"},
	{"half a byte of F4", shaped("F4", "[1]", 1), 1, fault.Corrupt, "not a whole number of bytes"},
	{"a quarter over of F6_E2M3", shaped("F6_E2M3", "[3]", 3), 3, fault.Corrupt, "not a whole number of bytes"},
	{"half over of F6_E3M2", shaped("F6_E3M2", "[2]", 2), 2, fault.Corrupt, "not a whole number of bytes"},
	{"F4 as if it were a byte wide", shaped("F4", "[2]", 2), 2, fault.Corrupt, "takes 1 bytes"},
	{"F6 as if it were a byte wide", shaped("F6_E2M3", "[4]", 4), 4, fault.Corrupt, "takes 3 bytes"},
	{"F8 as if it were two wide", shaped("F8_E4M3", "[2]", 4), 4, fault.Corrupt, "takes 2 bytes"},
	{"too few bytes for the shape", shaped("F32", "[2]", 7), 7, fault.Corrupt, "takes 8 bytes, data_offsets give it 7"},
	{"too many bytes for the shape", shaped("F32", "[2]", 9), 9, fault.Corrupt, "takes 8 bytes, data_offsets give it 9"},
	{"bytes for a tensor without elements", shaped("F32", "[0]", 4), 4, fault.Corrupt, "takes 0 bytes"},
	{"no bytes for a scalar", shaped("F32", "[]", 0), 0, fault.Corrupt, "takes 4 bytes"},
	{"65 dimensions", shaped("U8", "[1"+strings.Repeat(",1", 64)+"]", 1), 1, fault.Limit, "more than 64 dimensions"},

	// The data.
	{"gap at the start", "{" + u8("a", 1, 1) + "}", 2, fault.Corrupt, "leaves a gap after the header"},
	{"gap between", "{" + u8("a", 0, 1) + "," + u8("b", 2, 1) + "}", 3, fault.Corrupt, `"b" begins at byte 2 of the data and leaves a gap after "a", which ends at 1`},
	{"overlap", "{" + u8("a", 0, 2) + "," + u8("b", 1, 2) + "}", 3, fault.Corrupt, `"b" begins at byte 1 of the data and overlaps "a"`},
	{"aliasing", "{" + u8("a", 0, 2) + "," + u8("b", 0, 2) + "}", 2, fault.Corrupt, `overlaps "a"`},
	{"one inside another", "{" + u8("a", 0, 3) + "," + u8("b", 1, 1) + "}", 3, fault.Corrupt, `overlaps "a"`},
	{"an empty one inside another", "{" + u8("a", 0, 3) + "," + u8("b", 1, 0) + "}", 3, fault.Corrupt, `overlaps "a"`},
	{"an empty one behind the end", "{" + u8("a", 0, 1) + "," + u8("b", 2, 0) + "}", 1, fault.Corrupt, "leaves a gap"},
	{"trailing byte", "{" + u8("a", 0, 1) + "}", 2, fault.Corrupt, "1 bytes follow the last tensor"},
	{"trailing bytes after no tensor", "{}", 8, fault.Corrupt, "8 bytes follow"},
	{"truncated by one byte", "{" + u8("a", 0, 2) + "}", 1, fault.Truncated, "the tensors take 2 bytes, the file has 1"},
	{"no data at all", "{" + u8("a", 0, 2) + "}", 0, fault.Truncated, "the tensors take 2 bytes, the file has 0"},
	{"tensors at the end of the address space", `{"a":{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}}`, 1, fault.Truncated, "the file has 1"},

	// Nesting: no rule of the grammar recurs, so depth costs nothing.
	{"deep arrays in a shape", entry(`"dtype":"U8","shape":[` + mark + strings.Repeat("[", 1<<20)), 0, fault.Corrupt, "non-negative integer"},
	{"deep objects", `{"a":` + strings.Repeat(`{"dtype":`, 1<<20), 0, fault.Corrupt, `want '"'`},
	{"deep metadata", `{"__metadata__":` + strings.Repeat(`{"k":`, 1<<20), 0, fault.Corrupt, `want '"'`},
}

func TestEveryBrokenRuleIsRefused(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range refused {
		if seen[c.name] {
			t.Fatalf("two cases are called %q", c.name)
		}
		seen[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			at := int64(strings.Index(c.header, mark))
			file := testkit.Raw(strings.Replace(c.header, mark, "", 1), make([]byte, c.nData))
			_, err := read(file)
			checkRefusal(t, err, c.kind, c.words)
			var e *fault.Error
			if errors.As(err, &e) && at >= 0 && e.Off != 8+at {
				t.Errorf("Read points to byte %d, want %d: %v", e.Off, 8+at, err)
			}
		})
	}
}

func checkRefusal(t *testing.T, err, kind error, words string) {
	t.Helper()
	var e *fault.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("Read = %v, want a *fault.Error", err)
	case !errors.Is(err, kind):
		t.Errorf("Read = %v of kind %v, want %v", err, e.Kind, kind)
	case !strings.Contains(err.Error(), words):
		t.Errorf("Read = %v, want the words %q", err, words)
	}
}

func read(file []byte) (*safetensors.Header, error) {
	return safetensors.Read(context.Background(), bytes.NewReader(file), int64(len(file)))
}

func TestImpossibleLengthsAreRefused(t *testing.T) {
	good := testkit.Encode(nil, testkit.Tensor{Name: "a", DType: dtype.U8, Shape: []uint64{1}, Data: []byte{7}})
	for _, c := range []struct {
		name   string
		length uint64
		kind   error
		words  string
	}{
		{"0", 0, fault.Corrupt, "claims 0 bytes"},
		{"1", 1, fault.Corrupt, "claims 1 bytes"},
		{"one more than the file has", uint64(len(good) - 7), fault.Truncated, "the file has"},
		{"the largest allowed", safetensors.MaxHeaderBytes, fault.Truncated, "the file has"},
		{"100,000,001", 100_000_001, fault.Limit, "the format allows 100000000"},
		{"2^63", 1 << 63, fault.Limit, "the format allows"},
		{"2^63-1", 1<<63 - 1, fault.Limit, "the format allows"},
		{"2^64-1", 1<<64 - 1, fault.Limit, "the format allows"},
		{"2^64-8", 1<<64 - 8, fault.Limit, "the format allows"},
	} {
		file := slices.Clone(good)
		binary.LittleEndian.PutUint64(file, c.length)
		_, err := read(file)
		t.Run(c.name, func(t *testing.T) { checkRefusal(t, err, c.kind, c.words) })
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	file := testkit.Encode(map[string]string{"format": "pt"},
		testkit.Tensor{Name: "a", DType: dtype.F32, Shape: []uint64{2, 2}, Data: make([]byte, 16)},
		testkit.Tensor{Name: "b", DType: dtype.U8, Shape: []uint64{3}, Data: make([]byte, 3)})
	if _, err := read(file); err != nil {
		t.Fatal(err)
	}
	for n := range file {
		_, err := read(file[:n])
		if !errors.Is(err, fault.Truncated) {
			t.Errorf("Read(the first %d of %d bytes) = %v, want an error of kind %v", n, len(file), err, fault.Truncated)
		}
	}
}

// TestOddButValidFilesAreAccepted: these are in the wild, or follow from the rules.
func TestOddButValidFilesAreAccepted(t *testing.T) {
	for _, c := range []struct {
		name    string
		header  string
		nData   int
		tensors string // name dtype shape offset size, the offset counted from the start of the data
	}{
		{"no tensor", "{}", 0, ""},
		{"no tensor, padded", "{}      ", 0, ""},
		{"metadata only", `{"__metadata__":{"format":"pt"}}`, 0, ""},
		{"metadata null, as MLX writes it", `{"__metadata__":null,` + u8("a", 0, 1) + "}", 1, "a U8 [1] 0 1"},
		{"scalar", shaped("F32", "[]", 4), 4, "a F32 [] 0 4"},
		{"no elements", shaped("F32", "[0]", 0), 0, "a F32 [0] 0 0"},
		{"no elements in the middle of the shape", shaped("BF16", "[3,0,5]", 0), 0, "a BF16 [3 0 5] 0 0"},
		{"no elements beside a huge dimension", shaped("U8", "[0,9223372036854775807]", 0), 0, "a U8 [0 9223372036854775807] 0 0"},
		{"64 dimensions", shaped("U8", "[1"+strings.Repeat(",1", 63)+"]", 1), 1, "a U8 [1" + strings.Repeat(" 1", 63) + "] 0 1"},
		{"empty tensors share an offset", "{" + u8("b", 2, 0) + "," + u8("a", 0, 2) + "," + u8("c", 2, 0) + "," + u8("d", 2, 1) + "}", 3,
			"a U8 [2] 0 2; b U8 [0] 2 0; c U8 [0] 2 0; d U8 [1] 2 1"},
		{"an empty tensor listed after the one that begins there", "{" + u8("a", 0, 2) + "," + u8("b", 0, 0) + "}", 2, "b U8 [0] 0 0; a U8 [2] 0 2"},
		{"data in another order than names", "{" + u8("a", 3, 1) + "," + u8("b", 0, 3) + "}", 4, "b U8 [3] 0 3; a U8 [1] 3 1"},
		{"misaligned F32", `{` + u8("a", 0, 1) + `,"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}`, 5, "a U8 [1] 0 1; b F32 [1] 1 4"},
		{"a header of odd length", "{" + u8("a", 0, 1) + "}" + strings.Repeat(" ", 1-len(u8("a", 0, 1))%2), 1, "a U8 [1] 0 1"},
		{"F4", shaped("F4", "[3,2]", 3), 3, "a F4 [3 2] 0 3"},
		{"F6", shaped("F6_E3M2", "[4]", 3), 3, "a F6_E3M2 [4] 0 3"},
		{"F8", shaped("F8_E5M2", "[3]", 3), 3, "a F8_E5M2 [3] 0 3"},
		{"F8 scales", shaped("F8_E8M0", "[3]", 3), 3, "a F8_E8M0 [3] 0 3"},
		{"BOOL", shaped("BOOL", "[3]", 3), 3, "a BOOL [3] 0 3"},
		{"C64", shaped("C64", "[3]", 24), 24, "a C64 [3] 0 24"},
		{"I64", shaped("I64", "[2]", 16), 16, "a I64 [2] 0 16"},
		{"fields in another order", entry(`"data_offsets":[0,2],"shape":[2],"dtype":"U8"`), 2, "a U8 [2] 0 2"},
		{"white space everywhere", "{ \"a\" :\t{ \"dtype\" : \"U8\" ,\n\"shape\" : [ 1 , 2 ] ,\r\n\"data_offsets\" : [ 0 , 2 ] } }\n\t ", 2, "a U8 [1 2] 0 2"},
		{"escapes in a name", `{"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00":` + u8("a", 0, 1)[4:] + "}", 1, "\"\\/\b\f\n\r\té😀 U8 [1] 0 1"},
		{"escapes in a field", entry(`"\u0064type":"\u00558","shape":[1],"data_offsets":[0,1]`), 1, "a U8 [1] 0 1"},
		{"an empty name", "{" + u8("", 0, 1) + "}", 1, " U8 [1] 0 1"},
		{"DEL and the replacement character in a name", "{\"\x7f\ufffd\":" + u8("a", 0, 1)[4:] + "}", 1, "\x7f\ufffd U8 [1] 0 1"},
		{"names that differ in normal form only", "{" + u8("\u00e9", 0, 1) + "," + u8("e\u0301", 1, 1) + "}", 2, "\u00e9 U8 [1] 0 1; e\u0301 U8 [1] 1 1"},
		{"a tensor called like a field", "{" + u8("dtype", 0, 1) + "}", 1, "dtype U8 [1] 0 1"},
		{"metadata last", "{" + u8("a", 0, 1) + `,"__metadata__":{"k":"v"}}`, 1, "a U8 [1] 0 1"},
		{"a header as long as the magic number of a pickle", "{" + u8("a", 0, 1) + "}" + strings.Repeat(" ", 0x0280-len(u8("a", 0, 1))-2), 1, "a U8 [1] 0 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := read(testkit.Raw(c.header, make([]byte, c.nData)))
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(8 + len(c.header)); h.DataOff != want {
				t.Errorf("DataOff = %d, want %d", h.DataOff, want)
			}
			if got := describe(h); got != c.tensors {
				t.Errorf("Read found the tensors %q, want %q", got, c.tensors)
			}
		})
	}
}

// describe lists the tensors of a header as the tests above do.
func describe(h *safetensors.Header) string {
	var list []string
	for _, t := range h.Tensors {
		shape := append([]uint64{}, t.Shape...)
		list = append(list, fmt.Sprintf("%s %v %d %d %d", t.Name, t.DType, shape, t.Off-h.DataOff, t.NBytes))
	}
	return strings.Join(list, "; ")
}

func TestOtherKindsOfFileAreNamed(t *testing.T) {
	for _, c := range []struct{ content, words string }{
		{"", "empty"},
		{"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git-lfs pointer"},
		{"<!DOCTYPE html><html>", "HTML page"},
		{"PK\x03\x04 and more bytes", "zip archive"},
		{"\x80\x02}q\x00(X\x04\x00\x00\x00", "pickle"},
		{"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00", "pickle"},
		{"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "GGUF"},
		{"\x28\xb5\x2f\xfd\x00\x00\x00\x00\x00\x00\x00", "zstd"},
		{"Entry not found", "no such file"},
		{"any text that is long enough", "not a safetensors file"},
		{"Access to model x/y is restricted. You must be logged in.", "a text"},
		{`{"error":"Repository not found"}`, "a JSON text"},
		{"{\n \"model_type\": \"llama\"}", "a JSON text"},
		{"PK\x03\x04" + strings.Repeat("\x00", 26) + "archive/data.pkl", "torch saves pickles"},
		{"\x1f\x8b\x08\x08 and more bytes", "gzip"},
		{"\x89HDF\r\n\x1a\n and more bytes", "HDF5"},
		{"\x93NUMPY\x01\x00 and more bytes", "NumPy array"},
		{strings.Repeat("\x00", 64), "begins with zeros"},
	} {
		_, err := read([]byte(c.content))
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("Read(%q) = %v, want the words %q", c.content, err, c.words)
		}
	}
}
