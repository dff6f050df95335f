package merge_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// testdata/undo/make.py wrote these vectors from spec/UNDO.md. It shares no code with loratool.

const undoVectors = "../testdata/undo"

// undoVector is a record of index.txt; the README.md beside it explains the fields.
type undoVector struct {
	file, merged, expect, sha256 string
	size                         int64 // of the merged file, padded with zeros; 0 means its own size
	adapters, rules              []string
	restored                     map[string]string
}

func readUndoVectors(t *testing.T) []undoVector {
	t.Helper()
	var all []undoVector
	for _, r := range testkit.Index(t, undoVectors) {
		v := undoVector{restored: make(map[string]string)}
		for _, f := range r.Fields {
			key, value := f.Key, f.Value
			switch key {
			case "file":
				v.file = value
			case "merged":
				name, size, padded := strings.Cut(value, " ")
				v.merged = name
				var err error
				if v.size, err = strconv.ParseInt(size, 10, 64); padded && err != nil {
					t.Fatalf("%s: %v", v.file, err)
				}
			case "adapter":
				v.adapters = append(v.adapters, value)
			case "expect":
				v.expect = value
			case "rule":
				v.rules = strings.Fields(value)
			case "sha256":
				v.sha256 = value
			case "restored":
				name, sum, ok := strings.Cut(value, " ")
				if !ok {
					name, sum = "", value
				}
				v.restored[name] = sum
			}
		}
		all = append(all, v)
	}
	return all
}

// undoDeviations lists, by the beginning of their names, the vectors on which loratool deviates
// from the spec, with its own behaviour.
var undoDeviations = map[string]string{
	"ok-widths": "merges of this version change floats only, so it reads the adapter otherwise, and says so",
}

// TestUndoVectors undoes every vector's merge. Valid records restore the checkpoint; broken ones
// give an error of their kind that names the rule, and no output.
func TestUndoVectors(t *testing.T) {
	for _, v := range readUndoVectors(t) {
		t.Run(v.file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(undoVectors, v.file))
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != v.sha256 {
				t.Fatal("not the file of the index")
			}
			dir := t.TempDir()
			out := filepath.Join(dir, "out")
			err = v.unmerge(t, b, out)
			problem := v.check(t, b, out, err)
			for name, what := range undoDeviations {
				if strings.HasPrefix(v.file, name) {
					if problem == "" {
						t.Errorf("now as the spec says; delete it from the deviations: %s", what)
					}
					return
				}
			}
			if left, _ := os.ReadDir(dir); err != nil && len(left) > 0 {
				t.Errorf("%q was left behind", left[0].Name())
			}
			if problem != "" {
				t.Error(problem)
			}
		})
	}
}

// unmerge undoes the vector's merge into out.
func (v *undoVector) unmerge(t *testing.T, record []byte, out string) error {
	r, err := merge.OpenRecord(context.Background(), v.file, bytes.NewReader(record), int64(len(record)))
	if err != nil {
		return err
	}
	var adapters []merge.Adapter
	for _, name := range v.adapters {
		src, err := convert.Open(t.Context(), filepath.Join(undoVectors, name), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		adapters = append(adapters, merge.Adapter{Source: src, Name: name})
	}
	merged := filepath.Join(undoVectors, v.merged)
	if v.size > 0 {
		merged = padded(t, merged, v.size)
	}
	p, err := merge.OpenUnmerge(context.Background(), merged, merge.Removal{Adapters: anyWeight(adapters), Records: []*merge.Record{r}}, merge.Options{})
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = p.Run(context.Background(), out)
	return err
}

// padded copies a file and appends zeros.
func padded(t *testing.T, path string, size int64) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), filepath.Base(path))
	testkit.Write(t, path, b)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

var faultKinds = map[string]error{"corrupt": fault.Corrupt, "truncated": fault.Truncated, "unsupported": fault.Unsupported, "limit": fault.Limit, "mismatch": fault.Mismatch}

// check compares the outcome with the index. The first rule of a broken record gives the vector's
// kind.
func (v *undoVector) check(t *testing.T, record []byte, out string, err error) string {
	t.Helper()
	if v.expect == "ok" {
		if err != nil {
			return err.Error()
		}
		if _, err := format.Verify(context.Background(), bytes.NewReader(record), int64(len(record)), format.ReaderOptions{}); err != nil {
			return err.Error()
		}
		got := tree(t, out)
		if index := "model.safetensors.index.json"; v.restored[index] == "" {
			delete(got, index)
		}
		if !maps.Equal(got, v.restored) {
			return fmt.Sprintf("restored %v, want %v", got, v.restored)
		}
		return ""
	}
	if err == nil {
		return fmt.Sprintf("no error, want %s %v", v.expect, v.rules)
	}
	i := slices.IndexFunc(v.rules, func(rule string) bool { return strings.Contains(err.Error(), "("+rule+")") })
	if i < 0 || i == 0 && !errors.Is(err, faultKinds[v.expect]) {
		return fmt.Sprintf("%s: %v, want %s %v", fault.KindName(err), err, v.expect, v.rules)
	}
	return ""
}

// TestEveryUndoRuleHasAVector reads the rules from the spec.
func TestEveryUndoRuleHasAVector(t *testing.T) {
	spec, err := os.ReadFile("../spec/UNDO.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]string)
	for _, v := range readUndoVectors(t) {
		if len(v.rules) > 0 {
			kinds[v.rules[0]] = v.expect
		}
	}
	for i, rule := range regexp.MustCompile(`(?m)^\*\*(U[0-9]+)\.\*\* .*\bMUST\b.* \[(\w+)\]$`).FindAllStringSubmatch(string(spec), -1) {
		if rule[1] != fmt.Sprint("U", i+1) {
			t.Errorf("%s stands where U%d is due", rule[1], i+1)
		}
		if kinds[rule[1]] != rule[2] {
			t.Errorf("%s is %s, its vectors are %q", rule[1], rule[2], kinds[rule[1]])
		}
	}
	if len(kinds) < 18 {
		t.Errorf("vectors for %d rules, want at least 18", len(kinds))
	}
}
