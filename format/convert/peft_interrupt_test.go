package convert

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestMatchingEndsWithTheContext: patterns that would use their whole budget stop soon after the
// context ends, and no adapter is made from their partial results.
func TestMatchingEndsWithTheContext(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(121, 122))
	key := "base_model.model." + strings.Repeat("a", 60) + ".lora_"
	testkit.WriteAdapter(t, dir, 2, 2,
		testkit.Random(rng, key+"A.weight", dtype.F32, 1, 2, 4),
		testkit.Random(rng, key+"B.weight", dtype.F32, 1, 4, 2))
	config := `{"peft_type":"LORA","r":2,"lora_alpha":2,"rank_pattern":{"((a+)+)+b":2,"((a+)+)+c":3}}`
	if err := os.WriteFile(filepath.Join(dir, format.PEFTConfig), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	const end = 100
	ctx := &testkit.Asked{Context: t.Context(), End: end}
	src, err := Open(ctx, dir, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, %v, want %v", src, err, context.Canceled)
	}
	if more := ctx.Times - end; more < 1 || more > 8 {
		t.Errorf("%d looks at the context followed its end, want 1 to 8", more)
	}
}
