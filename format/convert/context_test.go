package convert_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// TestOpeningEndsWithTheContext: at whatever point the context ends, opening returns its error. It
// checks the context for every tensor and every layer.
func TestOpeningEndsWithTheContext(t *testing.T) {
	const layers = 300
	rng := rand.New(rand.NewPCG(12, 5))
	var tensors []testkit.Tensor
	for i := range layers {
		key := fmt.Sprintf("base_model.model.layers.%d.q_proj.lora_", i)
		tensors = append(tensors,
			testkit.Random(rng, key+"A.weight", dtype.F32, 1, 1, 4),
			testkit.Random(rng, key+"B.weight", dtype.F32, 1, 4, 1))
	}
	dir := t.TempDir()
	testkit.WriteAdapter(t, dir, 1, 1, tensors...)
	testkit.EndsAnywhere(t, 3*layers, 7, func(ctx context.Context) error {
		src, err := convert.Open(ctx, dir, convert.Options{})
		if err == nil {
			err = src.Close()
		}
		return err
	})
}
