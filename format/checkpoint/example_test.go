package checkpoint_test

import (
	"context"
	"fmt"
	"log"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// Open a base once, merge an adapter into it in memory, and extract the adapter from the two again.
func Example() {
	ctx := context.Background()
	base, err := checkpoint.Open(ctx, "../../testdata/demo/base")
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()

	adapter, err := convert.Open(ctx, "../../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	adapters := []merge.Adapter{{Source: adapter, Name: "go", Weight: 1}}
	plan, err := merge.New(ctx, base, adapters, merge.Options{})
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
	defer merged.Close()
	fmt.Println("merged:", merged.History()[0].Adapters[0].Name)
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 8}, Output: new(output.Memory)}
	e, err := rank.NewExtraction(base, merged, o)
	if err != nil {
		log.Fatal(err)
	}
	defer e.Close()
	extracted, report, err := e.Run(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer extracted.Close()
	fmt.Println("extracted:", len(report.Layers), "layers of rank", report.Layers[0].Rank)
	// Output:
	// merged: go
	// extracted: 28 layers of rank 8
}
