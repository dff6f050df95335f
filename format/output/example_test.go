package output_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"sync"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
)

// store is an output of one's own: a stand-in for an object store.
type store struct {
	lock    sync.Mutex
	parts   []*object
	objects map[string][]byte // published by Commit
}

// object is a file of the store. It writes at any offset, from several goroutines.
type object struct {
	lock sync.Mutex
	name string
	data []byte
}

func (s *store) Create(info output.Info) (output.File, error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	o := &object{name: info.Name}
	s.parts = append(s.parts, o)
	return o, nil
}

func (s *store) Commit() error {
	s.objects = make(map[string][]byte)
	for _, o := range s.parts {
		s.objects[o.name] = o.data
	}
	return nil
}

// Abort is called after Commit too, and then has nothing left to remove.
func (s *store) Abort() { s.parts = nil }

func (o *object) WriteAt(p []byte, off int64) (int, error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	if missing := off + int64(len(p)) - int64(len(o.data)); missing > 0 {
		o.data = append(o.data, make([]byte, missing)...)
	}
	return copy(o.data[off:], p), nil
}

func (o *object) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	_, err := io.Copy(io.NewOffsetWriter(o, off), io.NewSectionReader(src, srcOff, n))
	return err
}

func (o *object) Close() error { return nil }

// Convert an adapter into an output of one's own.
func ExampleOutput() {
	ctx := context.Background()
	src, err := convert.Open(ctx, "../../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	var out store
	sink, err := convert.CreateTo(&out, convert.LoRA(), convert.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := format.Copy(ctx, sink, src); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(out.objects), "object, a .lora file:",
		bytes.HasPrefix(out.objects[""], []byte(format.Magic)))
	// Output:
	// 1 object, a .lora file: true
}

// Merge in memory, and open the result as the base of another merge.
func ExampleMemory_FS() {
	ctx := context.Background()
	adapter, err := convert.Open(ctx, "../../testdata/demo/adapter-r8", convert.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer adapter.Close()
	adapters := []merge.Adapter{{Source: adapter, Name: "go", Weight: 1}}
	plan, err := merge.Open(ctx, "../../testdata/demo/base", adapters, merge.Options{})
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
	_, err = merge.New(ctx, merged, adapters, merge.Options{})
	fmt.Println("merged before:", merged.History()[0].Adapters[0].Name)
	fmt.Println("a second time:", errors.Is(err, format.ErrMismatch))
	// Output:
	// merged before: go
	// a second time: true
}
