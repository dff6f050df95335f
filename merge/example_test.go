package merge_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/merge"
)

// Merge a PEFT adapter into a checkpoint on disk. The demo base is a tiny Llama that has learned
// Python; the adapter teaches it Go.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "merge")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	adapter, err := convert.Open(ctx, "../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	adapters := []merge.Adapter{{Source: adapter, Name: "go", Weight: 1}}
	plan, err := merge.Open(ctx, "../testdata/demo/base", adapters, merge.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	report, err := plan.Run(ctx, filepath.Join(dir, "merged"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Layers), "tensors updated,", report.Elements, "elements")
	// Output:
	// 28 tensors updated, 405504 elements
}

// Merge an adapter built in memory into a base from an fs.FS, and keep the result in memory:
// W + s·B·A with W = (1 2; 3 4), B = (1 2)ᵀ, A = (1 1) and s = 0.5.
func ExamplePlan_RunTo() {
	ctx := context.Background()
	w, _ := binary.Append(nil, binary.LittleEndian, []float32{1, 2, 3, 4})
	var weights bytes.Buffer
	err := safetensors.Write(ctx, &weights,
		[]format.Tensor{{Name: "q_proj.weight", DType: dtype.F32, Shape: []uint64{2, 2}}}, nil,
		func(p []byte, i int, off int64) error { copy(p, w[off:]); return nil })
	if err != nil {
		log.Fatal(err)
	}
	files := fstest.MapFS{"base/model.safetensors": {Data: weights.Bytes()}}

	b := format.NewBuilder("example")
	b.Linear("q_proj", 1, 0.5, format.Float32s([]float32{1, 1}), format.Float32s([]float32{1, 2}))
	adapter, err := b.Source()
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	base, err := checkpoint.OpenFS(ctx, files, "base")
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	adapters := []merge.Adapter{{Source: adapter, Name: "built here", Weight: 1}}
	plan, err := merge.New(ctx, base, adapters, merge.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(ctx, &out); err != nil {
		log.Fatal(err)
	}

	file := out.Files()["model.safetensors"]
	merged, err := safetensors.Open(ctx, bytes.NewReader(file), int64(len(file)))
	if err != nil {
		log.Fatal(err)
	}
	if err := merged.ReadBlobAt(w, 0, 0); err != nil {
		log.Fatal(err)
	}
	values := make([]float32, 4)
	if _, err := binary.Decode(w, binary.LittleEndian, values); err != nil {
		log.Fatal(err)
	}
	fmt.Println(merged.Tensors()[0].Name, values)
	// Output:
	// q_proj.weight [1.5 2.5 4 5]
}
