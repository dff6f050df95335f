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
	for _, folder := range []string{"tables", "rest"} {
		entries, err := files.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := path.Join(folder, e.Name())
			text, err := files.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != proved[name] {
				t.Errorf("%s: sha256 %s, check.py proved %q; run it again", name, got, proved[name])
			}
			delete(proved, name)
		}
	}
	for name := range proved {
		t.Errorf("%s was proved and is gone", name)
	}
}
