package format_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// trained is the state of a program in memory: an adapter for one module, with r = 2, m = 3 and n =
// 4. Three methods make it a Source.
type trained struct{ a, b []float32 }

func (t *trained) Manifest() *format.Manifest {
	return &format.Manifest{
		Adapters: []format.Adapter{{
			Method: "lora",
			Base:   format.Base{Name: "example/base"},
			Layers: []format.Layer{{
				Module: "model.layers.0.self_attn.q_proj", Kind: format.Linear, Rank: 2,
				Alpha: 4, Scaling: format.AlphaOverR,
				Roles: map[format.Role]int{format.RoleA: 0, format.RoleB: 1},
			}},
		}},
		Tensors: []format.Tensor{
			{Name: "q_proj.lora_A", DType: dtype.F32, Shape: []uint64{2, 4}},
			{Name: "q_proj.lora_B", DType: dtype.F32, Shape: []uint64{3, 2}},
		},
	}
}

func (t *trained) ReadBlobAt(p []byte, i int, off int64) error {
	blob := make([]byte, 0, 32)
	for _, x := range [][]float32{t.a, t.b}[i] {
		blob = binary.LittleEndian.AppendUint32(blob, math.Float32bits(x))
	}
	copy(p, blob[off:])
	return nil
}

func (t *trained) Close() error { return nil }

func adapter() format.Source {
	return &trained{a: []float32{1, 2, 3, 4, 5, 6, 7, 8}, b: []float32{0.5, 0, 0, 0.5, 1, 1}}
}

// Write a file. Any Source can be written to any io.Writer.
func ExampleWrite() {
	var file bytes.Buffer
	sum, err := format.Write(context.Background(), &file, adapter(), format.WriterOptions{Tool: "example", Version: "1"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sum.RawBytes, "bytes of tensors in", sum.Chunks, "chunk")
	fmt.Println("content id", sum.ContentID)
	// Output:
	// 56 bytes of tensors in 1 chunk
	// content id 2d76d9aa9e452682ea8ce1312b1bbcdf0c4c66fab37c33e377e1d98943de6b78
}

// Read one layer. Only the chunks that hold its tensors are read and decoded.
func ExampleReader_oneLayer() {
	r, err := format.Open(exampleFile())
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	m := r.Manifest()
	for _, l := range m.Adapters[0].Layers {
		if l.Module != "model.layers.0.self_attn.q_proj" {
			continue
		}
		i := l.Roles[format.RoleA]
		a := &m.Tensors[i]
		raw := make([]byte, a.NBytes())
		if err := r.ReadBlobAt(raw, i, 0); err != nil {
			log.Fatal(err)
		}
		values := make([]float32, a.Elements())
		dtype.Widen(values, a.DType, raw)
		fmt.Println("scale", l.Scale(), "rank", l.Rank)
		fmt.Println(a.Name, a.DType, a.Shape, values)
	}
	// Output:
	// scale 2 rank 2
	// q_proj.lora_A F32 [2 4] [1 2 3 4 5 6 7 8]
}

// listing is a Sink that prints its input. The writer of a dialect is a Sink that stores it.
type listing struct{ w io.Writer }

func (l listing) Store(ctx context.Context, src format.Source) error {
	m := src.Manifest()
	for i := range m.Tensors {
		t := &m.Tensors[i]
		p := make([]byte, t.NBytes())
		if err := src.ReadBlobAt(p, i, 0); err != nil {
			return err
		}
		fmt.Fprintf(l.w, "%s %v %d, begins with % x\n", t.Name, t.DType, t.Shape, p[:4])
	}
	return nil
}

// Convert from any Source to any Sink.
func ExampleCopy() {
	src, err := format.Open(exampleFile())
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	if err := format.Copy(context.Background(), listing{os.Stdout}, src); err != nil {
		log.Fatal(err)
	}
	// Output:
	// q_proj.lora_A F32 [2 4], begins with 00 00 80 3f
	// q_proj.lora_B F32 [3 2], begins with 00 00 00 3f
}

// Read from a pipe. The bytes arrive in the order of the file. They are good if the loop ends
// without an error.
func ExampleStreamReader() {
	f, err := os.Open(exampleFile())
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	s, err := format.NewStreamReader(f, format.ReaderOptions{})
	if err != nil {
		log.Fatal(err)
	}
	tensors := s.Manifest().Tensors
	for piece, err := range s.Pieces(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d bytes of %s from %d\n", len(piece.Bytes), tensors[piece.Blob].Name, piece.Off)
	}
	fmt.Println(s.Summary().RawBytes, "bytes, all checked")
	// Output:
	// 32 bytes of q_proj.lora_A from 0
	// 24 bytes of q_proj.lora_B from 0
	// 56 bytes, all checked
}

// exampleFile writes the adapter to a file and returns its name.
func exampleFile() string {
	path := filepath.Join(exampleDir, "adapter.lora")
	f, err := os.Create(path)
	if err != nil {
		log.Fatal(err)
	}
	w := format.NewWriter(f, format.WriterOptions{})
	if err := format.Copy(context.Background(), w, adapter()); err != nil {
		log.Fatal(err)
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}
	return path
}

// Make an adapter from values in memory. Shapes follow from the rank. Source reports any mistake.
func ExampleBuilder() {
	b := format.NewBuilder("mine")
	b.Linear("model.layers.0.self_attn.q_proj", 2, 0.5,
		format.Float32s([]float32{1, 2, 3, 4, 5, 6, 7, 8}), // A: 2×4
		format.Float32s([]float32{0.5, 0, 0, 0.5, 1, 1}))   // B: 3×2
	b.Replace("lm_head.bias", format.Float64s([]float64{0.25, 0.75}, 2))
	src, err := b.Source()
	if err != nil {
		log.Fatal(err)
	}
	m := src.Manifest()
	for i := range m.Tensors {
		values, err := format.ReadFloats(context.Background(), src, i)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(m.Tensors[i].Name, m.Tensors[i].DType, m.Tensors[i].Shape, values)
	}
	// Output:
	// model.layers.0.self_attn.q_proj.lora_A.weight F32 [2 4] [1 2 3 4 5 6 7 8]
	// model.layers.0.self_attn.q_proj.lora_B.weight F32 [3 2] [0.5 0 0 0.5 1 1]
	// lm_head.bias F64 [2] [0.25 0.75]
}

// Wrong input gives an Error with the fault, the place, the rule and the next step.
func ExampleError() {
	file, err := os.ReadFile(exampleFile())
	if err != nil {
		log.Fatal(err)
	}
	file = file[:len(file)-1]
	_, err = format.NewReader(bytes.NewReader(file), int64(len(file)), format.ReaderOptions{})
	var e *format.Error
	if errors.As(err, &e) {
		fmt.Println(e.Kind, e.Rule, errors.Is(err, format.ErrTruncated))
		fmt.Println(e.Msg)
		fmt.Println("hint:", e.Hint)
	}
	// Output:
	// truncated R1 true
	// the file does not end with a seek table: it was cut off at byte 541, or bytes were appended
	// hint: the file was not written or downloaded completely; fetch it again
}
