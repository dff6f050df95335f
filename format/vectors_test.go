package format_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/testkit"
)

// The vectors are written from spec/FORMAT.md by testdata/vectors/make.py, which shares no code
// with this package.

// task is a way to read a file. It returns the error it found.
type task struct {
	name string
	run  func(b []byte, o format.ReaderOptions) error
}

// tasks are the tasks of section 15 of the spec, ordered by how much they check.
var tasks = []task{
	{"open", func(b []byte, o format.ReaderOptions) error {
		r, err := format.NewReader(bytes.NewReader(b), int64(len(b)), o)
		if err == nil {
			r.Close()
		}
		return err
	}},
	{"read", func(b []byte, o format.ReaderOptions) error {
		r, err := format.NewReader(bytes.NewReader(b), int64(len(b)), o)
		if err != nil {
			return err
		}
		defer r.Close()
		m := r.Manifest()
		for i := range len(m.Tensors) + len(m.Attachments) {
			if err := eachPiece(r, i, func([]byte) {}); err != nil {
				return err
			}
		}
		return nil
	}},
	{"stream", func(b []byte, o format.ReaderOptions) error {
		r, err := format.NewStreamReader(bytes.NewReader(b), o)
		if err != nil {
			return err
		}
		for _, err := range r.Pieces(context.Background()) {
			if err != nil {
				return err
			}
		}
		return nil
	}},
	{"verify", func(b []byte, o format.ReaderOptions) error {
		_, err := format.Verify(context.Background(), bytes.NewReader(b), int64(len(b)), o)
		return err
	}},
}

// eachPiece reads a blob in pieces, so that a vector that declares a lot of data needs little
// memory.
func eachPiece(src format.Source, i int, f func([]byte)) error {
	m := src.Manifest()
	var size int64
	if i < len(m.Tensors) {
		size = m.Tensors[i].NBytes()
	} else {
		size = m.Attachments[i-len(m.Tensors)].NBytes
	}
	buf := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if err := src.ReadBlobAt(p, i, off); err != nil {
			return err
		}
		f(p)
	}
	return nil
}

var kinds = map[string]error{"corrupt": format.ErrCorrupt, "truncated": format.ErrTruncated, "unsupported": format.ErrUnsupported, "limit": format.ErrLimit}

func TestVectors(t *testing.T) {
	for _, v := range testkit.Vectors(t, "../testdata") {
		b, err := os.ReadFile(v.Path)
		if err != nil {
			t.Fatal(err)
		}
		o := format.ReaderOptions{MaxManifestBytes: v.Manifest, MaxRawBytes: v.Total}
		name := fmt.Sprintf("%s (index.txt:%d)", v.Name(), v.Line)
		first := slices.IndexFunc(tasks, func(k task) bool { return k.name == v.Stage })
		valid := v.Expect == "ok" || v.Stage == "restore" || v.Stage == "apply"
		for i, k := range tasks {
			err := k.run(b, o)
			switch {
			case valid && err != nil:
				t.Errorf("%s: %s: %v, want no error", name, k.name, err)
			case valid:
			case k.name == "read" && v.Stage == "stream": // section 15: reading by position does not check digests
			case i >= first && err == nil:
				t.Errorf("%s: %s finds nothing, want %v", name, k.name, v.Rules)
			case err != nil && !v.Reports(err.Error()):
				t.Errorf("%s: %s: %v, want one of %v", name, k.name, err, v.Rules)
			case err != nil && !hasKind(err):
				t.Errorf("%s: %s: %v has no kind", name, k.name, err)
			}
		}
		// Dump has the default limits.
		if err := format.Dump(t.Context(), io.Discard, bytes.NewReader(b), int64(len(b))); valid && err != nil && v.Manifest == 0 {
			t.Errorf("%s: dump: %v", name, err)
		}
		if valid {
			checkValid(t, name, b, o, &v)
		}
	}
}

// TestVerifiedRulesAreThoseOfVectors compares the list with the rules that broken vectors name, by
// the task that finds them.
func TestVerifiedRulesAreThoseOfVectors(t *testing.T) {
	rules := format.VerifiedRules()
	broken := map[string]bool{}
	for _, v := range testkit.Vectors(t, "../testdata") {
		verified := v.Stage != "restore" && v.Stage != "apply"
		for _, rule := range v.Rules {
			if v.Expect == "ok" {
				continue
			}
			broken[rule] = true
			if slices.Contains(rules, rule) != verified {
				t.Errorf("%s, found by %s, breaks %s; VerifiedRules lists it: %v", v.Name(), v.Stage, rule, !verified)
			}
		}
	}
	for _, rule := range rules {
		if !broken[rule] {
			t.Errorf("VerifiedRules lists %s, which no vector breaks", rule)
		}
	}
}

func hasKind(err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// checkValid compares the content of a valid vector with the index, and writes it again. The
// content is the same, and writing it once more gives the same bytes.
func checkValid(t *testing.T, name string, b []byte, o format.ReaderOptions, v *testkit.Vector) {
	ctx := context.Background()
	r, err := format.NewReader(bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		return // reported above
	}
	defer r.Close()
	if r.ContentID() != v.Content {
		t.Errorf("%s: content id %s, want %s", name, r.ContentID(), v.Content)
	}
	var raw int64
	for i := range r.Manifest().Tensors {
		raw += r.Manifest().Tensors[i].NBytes()
	}
	if raw > 64<<20 {
		return // gigabytes of zeros, read once above; verify has checked the content id, which covers their digests
	}
	got, err := tensorLines(r)
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if v.Tensors != nil && !slices.Equal(got, v.Tensors) {
		t.Errorf("%s: tensors\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(v.Tensors, "\n"))
	}
	var once, twice bytes.Buffer
	options := format.WriterOptions{MaxManifestBytes: 64 << 20} // some manifests exceed the default limit of a writer
	summary, err := format.Write(ctx, &once, r, options)
	if err != nil {
		t.Errorf("%s: writing it again: %v", name, err)
		return
	}
	if summary.ContentID != v.Content {
		t.Errorf("%s: written again, the content id is %s, want %s", name, summary.ContentID, v.Content)
	}
	again, err := format.NewReader(bytes.NewReader(once.Bytes()), int64(once.Len()), o)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer again.Close()
	if _, err := format.Write(ctx, &twice, again, options); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
		t.Errorf("%s: written twice, the bytes differ (%v)", name, err)
	}
}

// tensorLines lists the tensors as the index does: adapters in their order, tensors in storage
// order.
func tensorLines(r *format.Reader) ([]string, error) {
	m := r.Manifest()
	var lines []string
	for i := range m.Adapters {
		a := &m.Adapters[i]
		for _, t := range a.Tensors() {
			h := sha256.New()
			if err := eachPiece(r, t, func(p []byte) { h.Write(p) }); err != nil {
				return nil, err
			}
			shape := strings.ReplaceAll(fmt.Sprint(m.Tensors[t].Shape), " ", ",")
			lines = append(lines, fmt.Sprintf("%s/%s %v %s %s", a.Name, m.Tensors[t].Name, m.Tensors[t].DType, shape, hex.EncodeToString(h.Sum(nil))))
		}
	}
	return lines, nil
}

// TestEveryRuleHasAVector reads the rules from the spec.
func TestEveryRuleHasAVector(t *testing.T) {
	spec, err := os.ReadFile("../spec/FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	broken := make(map[string]bool)
	for _, v := range testkit.Vectors(t, "../testdata") {
		if len(v.Rules) > 0 {
			broken[v.Rules[0]] = true
		}
	}
	rules := regexp.MustCompile(`(?m)^\*\*(R[0-9]+)\.\*\* .*\bMUST\b`).FindAllSubmatch(spec, -1)
	if len(rules) < 60 {
		t.Fatalf("%d rules in the spec, want at least 60", len(rules))
	}
	for _, r := range rules {
		if !broken[string(r[1])] {
			t.Errorf("no vector breaks %s", r[1])
		}
	}
}
