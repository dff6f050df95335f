package merge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// question is a case.json of testdata/applying.
type question struct {
	File    string        `json:"file"`    // of the base's folder; "" for the folder
	Refused string        `json:"refused"` // the rule of spec/APPLY.md, "" if the merge has a result
	Options merge.Options `json:"options"`
}

// TestQuestionsHaveTheAnswersOfTheSpec merges the cases of testdata/applying. Their results are
// those of spec/apply.py, and refusals have the kind that the rule has in spec/APPLY.md.
func TestQuestionsHaveTheAnswersOfTheSpec(t *testing.T) {
	spec := string(file(t, "../spec/APPLY.md"))
	dirs, err := filepath.Glob("../testdata/applying/*/case.json")
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d cases, want 30 or more", len(dirs))
	}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var q question
			if err := json.Unmarshal(file(t, path), &q); err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "out")
			err := q.merge(t, dir, out)
			if q.Refused == "" {
				if err != nil {
					t.Fatal(err)
				}
				compareTensors(t, out, filepath.Join(dir, "merged.safetensors"))
				return
			}
			want := map[string]error{"mismatch": fault.Mismatch, "unsupported": fault.Unsupported}[kindOf(spec, q.Refused)]
			if want == nil { // a section, which has no kind
				want = err
			}
			if err == nil || !errors.Is(err, want) || format.Hint(err) == "" {
				t.Errorf("%s forbids this merge; got %v, with the hint %q", q.Refused, err, format.Hint(err))
			}
		})
	}
}

func (q *question) merge(t *testing.T, dir, out string) error {
	src, err := convert.Open(t.Context(), filepath.Join(dir, "adapter"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	adapters := []merge.Adapter{{Source: src, Name: "adapter", Weight: 1}}
	p, err := merge.Open(t.Context(), filepath.Join(dir, "base", q.File), adapters, q.Options)
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = p.Run(t.Context(), out)
	return err
}

// kindOf returns the kind of error that a rule has in the specification.
func kindOf(spec, rule string) string {
	m := regexp.MustCompile(`(?m)^\*\*` + rule + `\.\*\*.* \[(\w+)\]$`).FindStringSubmatch(spec)
	if m == nil {
		return ""
	}
	return m[1]
}

func file(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// compareTensors compares two checkpoints.
func compareTensors(t *testing.T, got, want string) {
	t.Helper()
	a, b := openCheckpoint(t, got), openCheckpoint(t, want)
	if x, y := slices.Sorted(slices.Values(a.Names())), slices.Sorted(slices.Values(b.Names())); !slices.Equal(x, y) {
		t.Fatalf("the result has the tensors %q, want %q", x, y)
	}
	for _, name := range b.Names() {
		if x, y := read(t, a, name), read(t, b, name); !bytes.Equal(x, y) {
			t.Errorf("%s is % x, want % x", name, x, y)
		}
	}
}
