package format

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// ruleOf returns the number of the rule that an error names, or "".
func ruleOf(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Rule
	}
	return ""
}

// forge changes the last decoded byte of a frame that ends in a raw block, and corrects its
// checksum.
func forge(frame []byte) {
	body := frame[:len(frame)-checksumBytes]
	body[len(body)-1] ^= 1
	resum(frame)
}

// resum corrects the checksum of a frame that decodes.
func resum(frame []byte) {
	n, ok := declaredSize(frame)
	if !ok || n > 1<<20 {
		return
	}
	d := newDecoder(1)
	defer d.close()
	content := make([]byte, n)
	err := d.decode(content, frame, 0)
	if err == nil || ruleOf(err) == "R17" {
		le.PutUint32(frame[len(frame)-checksumBytes:], uint32(xxh64(content)))
	}
}

// declaredSize returns the content size that a frame declares.
func declaredSize(frame []byte) (n uint64, ok bool) {
	if len(frame) < prefixBytes+checksumBytes {
		return 0, false
	}
	width := sizeWidth(frame[4])
	if len(frame) < prefixBytes+width+checksumBytes {
		return 0, false
	}
	return contentSize(frame[prefixBytes : prefixBytes+width]), true
}

func verifyBytes(p []byte) error {
	_, err := Verify(context.Background(), bytes.NewReader(p), int64(len(p)), ReaderOptions{Workers: 1})
	return err
}

func streamBytes(p []byte) error {
	s, err := NewStreamReader(bytes.NewReader(p), ReaderOptions{Workers: 1})
	if err != nil {
		return err
	}
	_, err = s.each(context.Background(), func(int, int64, []byte) error { return nil })
	return err
}

// tiny returns a file of less than a kilobyte with two chunks.
func tiny(tb testing.TB) []byte {
	src := plain(dtype.F32, 1, 8, 1, 1)
	src.attach("README.md", "", []byte("hi\n"))
	file, _ := written(tb, src, WriterOptions{})
	return file
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	file := tiny(t)
	if err := errors.Join(verifyBytes(file), streamBytes(file)); err != nil {
		t.Fatal(err)
	}
	ignorable := func(i int) bool { return i >= 24 && i < 28 || i == 18 || i == 19 } // readers accept these bits; the head digest covers them
	for i := range file {
		for bit := range 8 {
			file[i] ^= 1 << bit
			for how, err := range map[string]error{"Verify": verifyBytes(file), "Stream": streamBytes(file)} {
				if err == nil {
					t.Fatalf("%s accepts a file with bit %d of byte %d flipped", how, bit, i)
				}
				if ruleOf(err) == "" {
					t.Errorf("%s, bit %d of byte %d flipped: %v, want an error with a rule", how, bit, i, err)
				}
				if ignorable(i) && ruleOf(err) != "R60" {
					t.Errorf("%s, bit %d of byte %d flipped: %v, want R60", how, bit, i, err)
				}
			}
			file[i] ^= 1 << bit
		}
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	file := tiny(t)
	for n := range file {
		for how, err := range map[string]error{"Verify": verifyBytes(file[:n]), "Stream": streamBytes(file[:n])} {
			if ruleOf(err) != "R1" || !errors.Is(err, ErrTruncated) {
				t.Errorf("%s of the first %d of %d bytes = %v, want R1", how, n, len(file), err)
			}
		}
		if _, err := NewReader(bytes.NewReader(file[:n]), int64(n), ReaderOptions{}); ruleOf(err) != "R1" {
			t.Errorf("NewReader of the first %d of %d bytes = %v, want R1", n, len(file), err)
		}
	}
}

func TestAppendedBytesAreFound(t *testing.T) {
	file := tiny(t)
	for _, more := range [][]byte{{0}, []byte("PK\x03\x04"), file, {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, file[len(file)-41:]} {
		longer := append(bytes.Clone(file), more...)
		for how, err := range map[string]error{"Verify": verifyBytes(longer), "Stream": streamBytes(longer)} {
			if ruleOf(err) != "R2" {
				t.Errorf("%s with % x appended = %v, want R2", how, more[:min(len(more), 8)], err)
			}
		}
	}
}

// TestFlippedBitsInALargeFileAreFound samples a file of many chunks.
func TestFlippedBitsInALargeFileAreFound(t *testing.T) {
	file, _ := written(t, plain(dtype.BF16, 6, 2048, 8, 3), smallChunks)
	for i := 0; i < len(file); i += 1999 {
		file[i] ^= 1 << (i % 8)
		if err := verifyBytes(file); ruleOf(err) == "" {
			t.Errorf("byte %d changed: Verify = %v, want an error with a rule", i, err)
		}
		file[i] ^= 1 << (i % 8)
	}
}

func TestVerifyJoinsAllFailures(t *testing.T) {
	file, _ := written(t, plain(dtype.F32, 6, 1024, 8, 1), smallChunks)
	r := opened(t, file)
	for _, i := range []int64{1, 4} {
		off, end := r.tail.span(i)
		file[(off+end)/2] ^= 1
	}
	err := verifyBytes(file)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("Verify = %v, want joined errors", err)
	}
	var rules []string
	for _, e := range joined.Unwrap() {
		rules = append(rules, ruleOf(e))
	}
	if len(rules) != 4 { // a digest and a checksum for either chunk
		t.Errorf("Verify reports %q, want R61 and another for two chunks:\n%v", rules, err)
	}
}

func TestSwappedChunksAreFoundByVerify(t *testing.T) {
	src := &memory{}
	big := randomBytes(2<<minChunkLog2, 1) // two chunks of raw blocks
	src.manifest.Adapters = []Adapter{{Method: "lora", Beside: []Beside{
		{Action: Opaque, Tensor: src.tensor("big", dtype.U8, big, uint64(len(big)))},
	}}}
	file, _ := written(t, src, smallChunks)
	off, mid := opened(t, file).tail.span(0)
	_, end := opened(t, file).tail.span(1)
	swapped := bytes.Clone(file)
	copy(swapped[off:], file[mid:end])
	copy(swapped[off+end-mid:], file[off:mid])
	p := make([]byte, len(big))
	if err := opened(t, swapped).ReadBlobAt(p, 0, 0); err != nil {
		t.Errorf("ReadBlobAt = %v; two valid frames of one length are not told apart without digests", err)
	}
	for how, err := range map[string]error{"Verify": verifyBytes(swapped), "Stream": streamBytes(swapped)} {
		if ruleOf(err) != "R61" {
			t.Errorf("%s of swapped chunks = %v, want R61", how, err)
		}
	}
}
