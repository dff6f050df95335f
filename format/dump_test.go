package format

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
)

// TestDumpOfABrokenFileGoesAsFarAsItCan: the dump of a truncated file shows every byte in order,
// without a gap, and ends with the error.
func TestDumpOfABrokenFileGoesAsFarAsItCan(t *testing.T) {
	file, _ := written(t, example(), WriterOptions{})
	for n := range len(file) {
		var dump bytes.Buffer
		err := Dump(t.Context(), &dump, bytes.NewReader(file[:n]), int64(n))
		if ruleOf(err) != "R1" {
			t.Fatalf("Dump of the first %d bytes = %v, want R1", n, err)
		}
		var got []byte
		last := ""
		for line := range strings.Lines(dump.String()) {
			last = line
			m := exampleLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
			if m == nil {
				continue
			}
			if off, _ := strconv.ParseInt(m[1], 16, 64); off != int64(len(got)) {
				t.Fatalf("the dump of the first %d bytes goes on at %x after %x", n, off, len(got))
			}
			for word := range strings.FieldsSeq(m[2]) {
				b, _ := strconv.ParseUint(word, 16, 8)
				got = append(got, byte(b))
			}
		}
		if !bytes.Equal(got, file[:n]) {
			t.Fatalf("the dump of the first %d bytes has %d of them:\n%s", n, len(got), dump.String())
		}
		if !strings.HasPrefix(last, "# error: ") {
			t.Fatalf("the dump of the first %d bytes ends with %q, want the error", n, last)
		}
	}
}

// TestDumpEndsWithTheContext: the context is checked between two chunks.
func TestDumpEndsWithTheContext(t *testing.T) {
	file, _ := written(t, example(), WriterOptions{})
	testkit.EndsAnywhere(t, 2, 1, func(ctx context.Context) error {
		return Dump(ctx, io.Discard, bytes.NewReader(file), int64(len(file)))
	})
}

func TestDumpGoesOnAfterABrokenChunk(t *testing.T) {
	file, _ := written(t, example(), WriterOptions{})
	off, _ := opened(t, file).tail.span(0)
	file[off+10] ^= 1
	var dump bytes.Buffer
	err := Dump(t.Context(), &dump, bytes.NewReader(file), int64(len(file)))
	if ruleOf(err) != "R17" || !strings.Contains(dump.String(), "end magic") {
		t.Errorf("Dump = %v, want R17 and the rest of the file:\n%s", err, dump.String())
	}
}
