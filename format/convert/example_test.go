package convert_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
)

// Convert a PEFT adapter to a .lora file.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	src, err := convert.OpenDigested(ctx, "../../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	sink, err := convert.Create(filepath.Join(dir, "adapter.lora"), convert.LoRA(), convert.CreateOptions{Tool: "example"})
	if err != nil {
		log.Fatal(err)
	}
	if err := format.Copy(ctx, sink, src); err != nil {
		log.Fatal(err)
	}
	back, err := convert.Open(ctx, filepath.Join(dir, "adapter.lora"), convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer back.Close()
	fmt.Println(len(back.Manifest().Adapters[0].Layers), "layers of", back.Manifest().Adapters[0].Dialect)
	// Output:
	// 28 layers of peft
}

// Convert a PEFT adapter to a .lora file in memory. Any other output.Output works the same way.
func ExampleCreateTo() {
	ctx := context.Background()
	src, err := convert.OpenDigested(ctx, "../../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	var out output.Memory
	sink, err := convert.CreateTo(&out, convert.LoRA(), convert.CreateOptions{Tool: "example"})
	if err != nil {
		log.Fatal(err)
	}
	if err := format.Copy(ctx, sink, src); err != nil {
		log.Fatal(err)
	}

	file := out.Files()[""] // a container is one file
	back, err := convert.OpenReader(ctx, bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer back.Close()
	fmt.Println(len(back.Manifest().Adapters[0].Layers), "layers of", back.Manifest().Adapters[0].Dialect)
	// Output:
	// 28 layers of peft
}

// upDown is a dialect with the keys MODULE.up (B) and MODULE.down (A) for one layer of scale 1.
type upDown struct{}

func (upDown) Name() string           { return "up-down" }
func (upDown) Writes(ext string) bool { return false }

func (upDown) Recognise(in *convert.Input) bool {
	t := in.Tensors()
	return len(t) == 2 && t[0].Name == "q.down" && t[1].Name == "q.up"
}

func (upDown) Open(_ context.Context, in *convert.Input, _ convert.Options) (format.Source, error) {
	data := func(i int) format.Data {
		return format.Read(in.Tensors()[i], func(p []byte, off int64) error { return in.ReadBlobAt(p, i, off) })
	}
	b := format.NewBuilder("up-down")
	b.Linear("q", int(in.Tensors()[0].Shape[0]), 1, data(0), data(1))
	return b.Source()
}

func (upDown) Create(string, convert.CreateOptions) (format.Sink, error) {
	return nil, format.Errorf(format.ErrUnsupported, "up-down is not written")
}

// Add a dialect to the set and open an adapter in it from an fs.FS.
func ExampleDialects_With() {
	ctx := context.Background()
	var file bytes.Buffer
	err := safetensors.Write(ctx, &file, []format.Tensor{
		{Name: "q.down", DType: dtype.U8, Shape: []uint64{1, 3}},
		{Name: "q.up", DType: dtype.U8, Shape: []uint64{2, 1}},
	}, nil, func(p []byte, i int, off int64) error { return nil })
	if err != nil {
		log.Fatal(err)
	}
	files := fstest.MapFS{"mine/a.safetensors": {Data: file.Bytes()}}

	src, err := convert.Default().With(upDown{}).OpenFS(ctx, files, "mine", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	a := src.Manifest().Adapters[0]
	fmt.Println(a.Dialect, a.Layers[0].Module, a.Layers[0].Rank)
	// Output:
	// up-down q 1
}
