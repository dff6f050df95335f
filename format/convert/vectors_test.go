package convert_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/testkit"
)

// TestRestoreVectors restores every vector that has the header of a source file, valid or broken by
// R67 to R69.
func TestRestoreVectors(t *testing.T) {
	restored := 0
	for _, v := range testkit.Vectors(t, testdata) {
		if v.Stage != "restore" && v.Restored == nil {
			continue
		}
		src, err := format.Open(v.Path)
		if err != nil {
			t.Errorf("%s: %v", v.Name(), err)
			continue
		}
		var files []string
		err = nil
		for i := range src.Manifest().Adapters {
			h := sha256.New()
			if err = convert.Restore(context.Background(), h, src, i); err != nil {
				break
			}
			files = append(files, hex.EncodeToString(h.Sum(nil)))
		}
		src.Close()
		switch {
		case v.Expect != "ok" && (err == nil || !v.Reports(err.Error())):
			t.Errorf("%s: %v, want one of %v", v.Name(), err, v.Rules)
		case v.Expect != "ok":
		case err != nil:
			t.Errorf("%s: %v", v.Name(), err)
		default:
			for i, got := range files {
				if !strings.HasSuffix(v.Restored[i], got) {
					t.Errorf("%s: restored file %d has the SHA-256 %s, want %s", v.Name(), i, got, v.Restored[i])
				}
			}
		}
		restored++
	}
	if restored < 50 {
		t.Errorf("%d vectors were restored, want at least 50", restored)
	}
}
