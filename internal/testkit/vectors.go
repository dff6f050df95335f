package testkit

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Vector is a record of testdata/vectors/index.txt. The README.md beside it explains the fields.
type Vector struct {
	Path     string
	Expect   string
	Rules    []string
	Stage    string
	Manifest int64 // limit for the reader; 0 means its default
	Total    int64 // likewise
	Content  string
	Tensors  []string
	Restored []string
	Line     int // line of the index
}

// Name returns the file's name.
func (v *Vector) Name() string { return filepath.Base(v.Path) }

// Reports reports whether a message names one of the rules.
func (v *Vector) Reports(message string) bool {
	for _, r := range v.Rules {
		if strings.Contains(message, "("+r+")") {
			return true
		}
	}
	return false
}

// Vectors reads the index below the directory of the repository's test data. Fewer than 100 vectors
// are a failure.
func Vectors(t testing.TB, testdata string) []Vector {
	t.Helper()
	dir := filepath.Join(testdata, "vectors")
	var all []Vector
	for _, r := range Index(t, dir) {
		all = append(all, Vector{Line: r.Line})
		v := &all[len(all)-1]
		for _, f := range r.Fields {
			v.set(t, dir, f.Key, f.Value)
		}
	}
	return all
}

// Record is a record of an index.txt. Line is the line of its first field.
type Record struct {
	Line   int
	Fields []Field
}

// Field is one line, "key: value".
type Field struct{ Key, Value string }

// Index reads the index of the vectors in dir. Fields are lines, empty lines separate records, and
// # begins a comment. Fewer than 100 records are a failure.
func Index(t testing.TB, dir string) []Record {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "index.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var all []Record
	within := false
	for i, line := range strings.Split(string(text), "\n") {
		key, value, ok := strings.Cut(line, ": ")
		if !ok || strings.HasPrefix(line, "#") {
			within = false
			continue
		}
		if !within {
			all, within = append(all, Record{Line: i + 1}), true
		}
		r := &all[len(all)-1]
		r.Fields = append(r.Fields, Field{key, value})
	}
	if len(all) < 100 {
		t.Fatalf("%d vectors in %s, want at least 100", len(all), dir)
	}
	return all
}

// set sets one field.
func (v *Vector) set(t testing.TB, dir, key, value string) {
	t.Helper()
	switch key {
	case "file":
		v.Path = filepath.Join(dir, value)
	case "expect":
		v.Expect = value
	case "rule":
		v.Rules = strings.Fields(value)
	case "stage":
		v.Stage = value
	case "options":
		for _, o := range strings.Fields(value) {
			name, number, _ := strings.Cut(o, "=")
			n, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				t.Fatalf("index.txt:%d: %v", v.Line, err)
			}
			switch name {
			case "manifest":
				v.Manifest = n
			case "total":
				v.Total = n
			default:
				t.Fatalf("index.txt:%d: unknown option %q", v.Line, name)
			}
		}
	case "content":
		v.Content = value
	case "tensor":
		v.Tensors = append(v.Tensors, value)
	case "restored":
		v.Restored = append(v.Restored, value)
	}
}
