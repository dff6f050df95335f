package safetensors_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
)

// headers of about ten million bytes, each made to cost as much as it can in one way.
func largeHeaders() map[string]string {
	const size = 10_000_000
	fill := func(open, shut string, to int, item func(i int) string) string {
		var b strings.Builder
		b.WriteString(open)
		for i := 0; b.Len() < to-len(shut); i++ {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(item(i))
		}
		return b.String() + shut
	}
	tensor := func(i int) string {
		return fmt.Sprintf(`"%x":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}`, i, i, i+1)
	}
	empty := func(i int) string {
		return `"` + shortName(i) + `":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`
	}
	cube := func(i int) string {
		return fmt.Sprintf(`"%x":{"dtype":"U8","shape":[%s0],"data_offsets":[0,0]}`, i, strings.Repeat("0,", 63))
	}
	entry := func(i int) string { return `"` + shortName(i) + `":""` }
	pair := func(i int) string { return `"` + shortName(i) + `":"` + shortName(i) + `"` }
	return map[string]string{
		"many tensors":                          fill("{", "}", size, tensor),
		"many empty tensors":                    fill("{", "}", size, empty),
		"many tensors of many dimensions":       fill("{", "}", size, cube),
		"many metadata entries":                 fill(`{"__metadata__":{`, "}}", size, entry),
		"many metadata entries with values":     fill(`{"__metadata__":{`, "}}", size, pair),
		"many metadata entries behind a tensor": fill("{"+empty(0)+`,"__metadata__":{`, "}}", size, entry),
		"half tensors, half metadata":           fill(fill("{", `,"__metadata__":{`, size/2, empty), "}}", size, entry),
		"a shape of five million dimensions":    `{"a":{"dtype":"U8","shape":[` + strings.Repeat("1,", size/2) + `1],"data_offsets":[0,1]}}`,
		"five million data_offsets":             `{"a":{"dtype":"U8","shape":[],"data_offsets":[` + strings.Repeat("0,", size/2) + `0]}}`,
		"a number of ten million digits":        `{"a":{"dtype":"U8","shape":[` + strings.Repeat("9", size) + `],"data_offsets":[0,1]}}`,
		"one name":                              `{"` + strings.Repeat("a", size) + `":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`,
		"one name of escapes":                   `{"` + strings.Repeat(`\n`, size/2) + `":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`,
		"one name that is refused":              `{"` + strings.Repeat("\x7f", size) + `":{"dtype":"U8","shape":[9],"data_offsets":[0,1]}}`,
		"two names that are the same":           `{"` + strings.Repeat("\x7f", size/2) + `":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"` + strings.Repeat("\x7f", size/2) + `":{}}`,
		"an unknown field of a long name":       `{"a":{"` + strings.Repeat("\x7f", size) + `":0}}`,
		"an unknown dtype":                      `{"a":{"dtype":"` + strings.Repeat("\x7f", size) + `"}}`,
		"a string without an end":               `{"` + strings.Repeat("a", size),
		"an escaped string without an end":      `{"\n` + strings.Repeat("a", size),
		"deep arrays":                           strings.Repeat(`{"a":[`, size/6),
		"deep objects":                          strings.Repeat(`{"a":`, size/5),
		"white space":                           "{" + strings.Repeat(" ", size) + "}",
		"white space and then rubbish":          "{" + strings.Repeat("\n", size) + "x}",
		"not UTF-8 at the end":                  "{" + strings.Repeat(" ", size) + "\xff}",
	}
}

// shortName makes distinct names of four bytes for the first 2^24 numbers.
func shortName(i int) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-"
	return string([]byte{digits[i>>18&63], digits[i>>12&63], digits[i>>6&63], digits[i&63]})
}

// TestLargeHeadersCostLittleMemory: a header of 10 MB may not cost more than 100 MB. What is
// measured is TotalAlloc, the sum of all allocations whether or not they have been freed: it is at
// least the peak, and it does not depend on when the collector runs. Turning the error into text
// counts too, as every caller does it.
func TestLargeHeadersCostLittleMemory(t *testing.T) {
	const most = 100_000_000
	for name, header := range largeHeaders() {
		file := testkit.Raw(header, make([]byte, strings.Count(header, "[]")))
		r := bytes.NewReader(file)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h, err := safetensors.Read(t.Context(), r, r.Size())
		text := fmt.Sprint(err)
		runtime.ReadMemStats(&after)
		if cost := after.TotalAlloc - before.TotalAlloc; cost > most {
			t.Errorf("%s: reading %d bytes of header allocated %d bytes, want at most %d", name, len(header), cost, most)
		} else {
			t.Logf("%s: %d bytes", name, cost)
		}
		if len(text) > 10_000 {
			t.Errorf("%s: the error has %d bytes, want a message that people can read", name, len(text))
		}
		runtime.KeepAlive(h)
	}
}
