package merge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
)

// mergeDemo merges the adapter of the demo in memory, and returns the result and its undo record.
func mergeDemo(ctx context.Context, src format.Source) (*checkpoint.Checkpoint, *merge.Record) {
	var record bytes.Buffer
	adapters := []merge.Adapter{{Source: src, Name: "go", Weight: 1}}
	plan, err := merge.Open(ctx, "../testdata/demo/base", adapters, merge.Options{Undo: &record})
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(ctx, &out); err != nil {
		log.Fatal(err)
	}
	merged, err := checkpoint.OpenFS(ctx, out.FS(), ".")
	if err != nil {
		log.Fatal(err)
	}
	r := bytes.NewReader(record.Bytes())
	undo, err := merge.OpenRecord(ctx, "undo", r, r.Size())
	if err != nil {
		log.Fatal(err)
	}
	return merged, undo
}

// openAdapter opens the adapter of the demo.
func openAdapter(ctx context.Context) format.Source {
	src, err := convert.Open(ctx, "../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	return src
}

// Take an adapter out again with the undo record of its merge. OpenUnmerge does the same for a
// path. The weight NaN takes the weight from the record.
func ExampleOpenRecord() {
	ctx := context.Background()
	src := openAdapter(ctx)
	defer src.Close()
	merged, undo := mergeDemo(ctx, src)
	defer merged.Close()

	plan, err := merge.NewUnmerge(ctx, merged, merge.Removal{
		Adapters: []merge.Adapter{{Source: src, Name: "go", Weight: math.NaN()}},
		Records:  []*merge.Record{undo},
	}, merge.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	report, err := plan.RunTo(ctx, &out)
	if err != nil {
		log.Fatal(err)
	}
	var differ int64
	for _, t := range report.TakenOut {
		differ += t.MayDiffer
	}
	fmt.Println(len(report.TakenOut), "tensors restored,", differ, "elements may differ")
	// Output:
	// 28 tensors restored, 0 elements may differ
}

// Swap one adapter for another in one pass: here the same one at half its weight.
func ExampleNewSwap() {
	ctx := context.Background()
	src := openAdapter(ctx)
	defer src.Close()
	merged, undo := mergeDemo(ctx, src)
	defer merged.Close()

	remove := merge.Removal{
		Adapters: []merge.Adapter{{Source: src, Name: "go", Weight: math.NaN()}},
		Records:  []*merge.Record{undo},
	}
	add := []merge.Adapter{{Source: src, Name: "go", Weight: 0.5}}
	plan, err := merge.NewSwap(ctx, merged, remove, add, merge.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	var out output.Memory
	if _, err := plan.RunTo(ctx, &out); err != nil {
		log.Fatal(err)
	}
	swapped, err := checkpoint.OpenFS(ctx, out.FS(), ".")
	if err != nil {
		log.Fatal(err)
	}
	defer swapped.Close()
	history := swapped.History()
	fmt.Println(len(history), "merge, weight", history[0].Adapters[0].Weight)
	// Output:
	// 1 merge, weight 0.5
}

// Cancel a run once it has written half of its bytes. Nothing appears in the output.
func ExamplePlan_RunTo_cancel() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	src := openAdapter(ctx)
	defer src.Close()
	var written, half atomic.Int64
	options := merge.Options{Progress: func(n int64) {
		if written.Add(n) >= half.Load() {
			cancel()
		}
	}}
	adapters := []merge.Adapter{{Source: src, Name: "go", Weight: 1}}
	plan, err := merge.Open(ctx, "../testdata/demo/base", adapters, options)
	if err != nil {
		log.Fatal(err)
	}
	defer plan.Close()
	half.Store(plan.OutputBytes() / 2)
	var out output.Memory
	_, err = plan.RunTo(ctx, &out)
	fmt.Println("cancelled:", errors.Is(err, context.Canceled), "files:", len(out.Files()))
	// Output:
	// cancelled: true files: 0
}
