package rank_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"math"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/rank"
)

// checkpointOf opens a checkpoint in memory with one 2×2 weight.
func checkpointOf(ctx context.Context, w ...float32) *checkpoint.Checkpoint {
	data, err := binary.Append(nil, binary.LittleEndian, w)
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	err = safetensors.Write(ctx, &file,
		[]format.Tensor{{Name: "q_proj.weight", DType: dtype.F32, Shape: []uint64{2, 2}}}, nil,
		func(p []byte, i int, off int64) error { copy(p, data[off:]); return nil })
	if err != nil {
		log.Fatal(err)
	}
	r := bytes.NewReader(file.Bytes())
	c, err := checkpoint.OpenReader(ctx, "model.safetensors", r, r.Size())
	if err != nil {
		log.Fatal(err)
	}
	return c
}

// Extract an adapter in memory: both checkpoints, the factors and the .lora container. The weights
// differ by (3 4; 6 8), a matrix of rank 1 with the singular value √(9+16+36+64).
func Example() {
	ctx := context.Background()
	base, tuned := checkpointOf(ctx, 1, 1, 1, 1), checkpointOf(ctx, 4, 5, 7, 9)
	defer base.Close()
	defer tuned.Close()

	var out output.Memory
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 1}, Output: &out}
	e, err := rank.NewExtraction(base, tuned, o)
	if err != nil {
		log.Fatal(err)
	}
	defer e.Close()
	src, report, err := e.Run(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	sink, err := convert.CreateTo(&out, convert.LoRA(), convert.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := format.Copy(ctx, sink, src); err != nil {
		log.Fatal(err)
	}

	file := bytes.NewReader(out.Files()[""]) // a container is a single file, named ""
	adapter, err := convert.OpenReader(ctx, file, file.Size(), convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	l := report.Layers[0]
	fmt.Println(len(adapter.Manifest().Adapters[0].Layers), "layer:", l.Module, "of rank", l.Rank)
	fmt.Printf("singular value √%.0f\n", math.Pow(l.SingularValues[0], 2))
	// Output:
	// 1 layer: q_proj of rank 1
	// singular value √125
}
