package format_test

import (
	"bytes"
	"context"
	"fmt"
	"log"

	"github.com/loratool/loratool/format"
)

// small makes an adapter of rank 1 that scales its update.
func small(scale float64) format.Source {
	b := format.NewBuilder("mine")
	b.Linear("q_proj", 1, scale, format.Float32s([]float32{1, 2}), format.Float32s([]float32{3, 4}))
	src, err := b.Source()
	if err != nil {
		log.Fatal(err)
	}
	return src
}

// Join two adapters, store their equal tensors once, and take one of them out again.
func ExampleBundle() {
	ctx := context.Background()
	bundle, err := format.Bundle(
		format.Member{Name: "weak", Source: small(0.5)}, format.Member{Name: "strong", Source: small(2)})
	if err != nil {
		log.Fatal(err)
	}
	shared, err := format.Share(ctx, bundle)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(bundle.Manifest().Tensors), "tensors, shared", len(shared.Manifest().Tensors))

	strong, err := format.Select(shared, "strong")
	if err != nil {
		log.Fatal(err)
	}
	defer strong.Close() // closes all sources that it was made from
	fmt.Println("scale", strong.Manifest().Adapters[0].Layers[0].Scale())
	// Output:
	// 4 tensors, shared 2
	// scale 2
}

// Write a .lora file and check every byte of it.
func ExampleVerify() {
	ctx := context.Background()
	src := small(1)
	defer src.Close()
	var file bytes.Buffer
	written, err := format.Write(ctx, &file, src, format.WriterOptions{})
	if err != nil {
		log.Fatal(err)
	}
	r := bytes.NewReader(file.Bytes())
	found, err := format.Verify(ctx, r, r.Size(), format.ReaderOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the same file:", found.FileID == written.FileID)
	// Output:
	// the same file: true
}
