package rank_test

import (
	"context"
	"strings"
	"testing"

	"github.com/loratool/loratool/rank"
)

// TestExtractRefusesGGUF: factors of GGUF files would have the names of llama.cpp and its order of
// the rows of q and k.
func TestExtractRefusesGGUF(t *testing.T) {
	const base = "../testdata/gguf/bases/plain/base.gguf"
	_, err := rank.OpenExtraction(context.Background(), base, base, rank.ExtractOptions{Budget: 1 << 20})
	if err == nil || !strings.Contains(err.Error(), "this is a GGUF file") {
		t.Errorf("error %v", err)
	}
}
