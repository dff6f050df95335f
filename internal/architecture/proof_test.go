package architecture

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"
)

// TestTablesAreThoseThatWereProved compares the digests of the tables with those in the output of
// testdata/architecture/check.py.
func TestTablesAreThoseThatWereProved(t *testing.T) {
	result, err := os.ReadFile("../../testdata/architecture/RESULT.txt")
	if err != nil {
		t.Fatal(err)
	}
	proved := make(map[string]string)
	for line := range strings.Lines(string(result)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "sha256" {
			proved[f[2]] = f[1]
		}
	}
	entries, err := files.ReadDir("tables")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := files.ReadFile(path.Join("tables", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != proved[e.Name()] {
			t.Errorf("%s: sha256 %s, check.py proved %q; run it again", e.Name(), got, proved[e.Name()])
		}
		delete(proved, e.Name())
	}
	for name := range proved {
		t.Errorf("%s was proved and is gone", name)
	}
}
