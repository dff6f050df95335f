// Outside is a program by somebody else. It uses only the library's exported names and this
// repository's test data. It is a separate module, so that the compiler refuses internal packages.
// CI runs it; it fails on any wrong result.
//
// Usage: outside REPOSITORY
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

const peftAdapter = "testdata/demo/adapter-r8"

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: outside REPOSITORY")
	}
	dir, err := os.MkdirTemp("", "outside-*")
	if err != nil {
		log.Fatal(err)
	}
	o := outside{files: os.DirFS(os.Args[1]), root: os.Args[1], dir: dir, dialects: convert.Default().With(threads{})}
	err = o.run(context.Background())
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		log.Fatal(err)
	}
}

type outside struct {
	files    fs.FS // the repository
	root     string
	dir      string // for outputs
	dialects convert.Dialects
}

func (o *outside) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"convert a dialect of our own both ways", o.convertBothWays},
		{"convert into an output of our own", o.convertIntoBucket},
		{"merge two adapters, with progress, and extract them", o.mergeTwo},
		{"cancel a merge half way", o.cancelHalfWay},
		{"read a .lora file layer by layer", o.readLayers},
		{"print spectra", o.printSpectra},
		{"read the fields of an error", o.readError},
	} {
		fmt.Println("==", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// convertBothWays converts from PEFT to the dialect threads and back, and compares every factor and
// scale.
func (o *outside) convertBothWays(ctx context.Context) error {
	src, err := o.dialects.OpenFS(ctx, o.files, peftAdapter, convert.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	thread := filepath.Join(o.dir, "demo.thread")
	dialect, err := o.dialects.For(thread)
	if err != nil {
		return err
	}
	if err := o.store(ctx, thread, dialect, src); err != nil {
		return err
	}
	ours, err := o.dialects.Open(ctx, thread, convert.Options{})
	if err != nil {
		return err
	}
	defer ours.Close()
	back := filepath.Join(o.dir, "peft")
	if err := o.store(ctx, back, o.dialects.Named("peft"), ours); err != nil {
		return err
	}
	peft, err := convert.Open(ctx, back, convert.Options{})
	if err != nil {
		return err
	}
	defer peft.Close()
	fmt.Println(ours.Manifest().Adapters[0].Dialect, "and back:", len(peft.Manifest().Adapters[0].Layers), "layers")
	return errors.Join(sameUpdates(ctx, src, ours), sameUpdates(ctx, src, peft))
}

// convertIntoBucket stores an adapter in a bucket in each dialect for models of language, and opens
// it from there. GGUF has rows in another order, and is left out.
func (o *outside) convertIntoBucket(ctx context.Context) error {
	src, err := o.dialects.OpenFS(ctx, o.files, peftAdapter, convert.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	for _, name := range []string{threads{}.Name(), "lora", "peft"} {
		d := o.dialects.Named(name)
		out := &bucket{under: "adapters/" + d.Name()}
		if err := storeTo(ctx, out, d, src); err != nil {
			return err
		}
		files, at := out.fs()
		back, err := o.dialects.OpenFS(ctx, files, at, convert.Options{})
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name(), err)
		}
		if err := errors.Join(sameUpdates(ctx, src, back), back.Close()); err != nil {
			return fmt.Errorf("%s: %w", d.Name(), err)
		}
		fmt.Println(d.Name(), "in", len(out.objects), "objects")
	}
	return nil
}

func storeTo(ctx context.Context, out output.Output, d convert.Dialect, src format.Source) error {
	defer out.Abort()
	sink, err := convert.CreateTo(out, d, convert.CreateOptions{Tool: "outside"})
	if err != nil {
		return err
	}
	return format.Copy(ctx, sink, src)
}

func (o *outside) store(ctx context.Context, path string, d convert.Dialect, src format.Source) error {
	sink, err := convert.Create(path, d, convert.CreateOptions{Tool: "outside"})
	if err != nil {
		return err
	}
	return format.Copy(ctx, sink, src)
}

// sameUpdates compares layers by module: scale, A and B.
func sameUpdates(ctx context.Context, want, got format.Source) error {
	w, g := &want.Manifest().Adapters[0], &got.Manifest().Adapters[0]
	if len(w.Layers) != len(g.Layers) {
		return fmt.Errorf("%d layers, want %d", len(g.Layers), len(w.Layers))
	}
	for _, l := range w.Layers {
		k := slices.IndexFunc(g.Layers, func(x format.Layer) bool { return x.Module == l.Module })
		if k < 0 {
			return fmt.Errorf("no layer %s", l.Module)
		}
		if a, b := l.Scale(), g.Layers[k].Scale(); a != b {
			return fmt.Errorf("%s: scale %v, want %v", l.Module, b, a)
		}
		for _, role := range []format.Role{format.RoleA, format.RoleB} {
			a, err1 := format.ReadFloats(ctx, want, l.Roles[role])
			b, err2 := format.ReadFloats(ctx, got, g.Layers[k].Roles[role])
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			if !slices.Equal(a, b) {
				return fmt.Errorf("%s: another %s", l.Module, role)
			}
		}
	}
	return nil
}

// openTwo opens the demo's adapter, and a second one built for the same modules with other factors.
func (o *outside) openTwo(ctx context.Context) ([]merge.Adapter, error) {
	first, err := convert.OpenFS(ctx, o.files, peftAdapter, convert.Options{})
	if err != nil {
		return nil, err
	}
	b := format.NewBuilder("outside")
	m := first.Manifest()
	for _, l := range m.Adapters[0].Layers {
		n, rows := m.Tensors[l.Roles[format.RoleA]].Shape[1], m.Tensors[l.Roles[format.RoleB]].Shape[0]
		b.Linear(l.Module, 1, 0.25, format.Float32s(slices.Repeat([]float32{0.01}, int(n))), format.Float64s(slices.Repeat([]float64{0.02}, int(rows))))
	}
	second, err := b.Source()
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return []merge.Adapter{{Source: first, Name: "demo", Weight: 1}, {Source: second, Name: "made up", Weight: 2}}, nil
}

// merge merges the two adapters into the demo's base, and reports written and total bytes to
// progress. Neither base nor output has a path.
func (o *outside) merge(
	ctx context.Context, out output.Output, progress func(done, all int64),
) (*merge.Report, error) {
	adapters, err := o.openTwo(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, a := range adapters {
			a.Source.Close()
		}
	}()
	var done, all atomic.Int64
	base, err := checkpoint.OpenFS(ctx, o.files, "testdata/demo/base")
	if err != nil {
		return nil, err
	}
	defer base.Close()
	plan, err := merge.New(ctx, base, adapters, merge.Options{
		Workers: 2, BlockBytes: 1 << 14, // with a larger block this base would be one block
		Progress: func(n int64) { progress(done.Add(n), all.Load()) },
	})
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	all.Store(plan.OutputBytes())
	return plan.RunTo(ctx, out)
}

func (o *outside) mergeTwo(ctx context.Context) error {
	var last, whole atomic.Int64
	var out output.Memory
	report, err := o.merge(ctx, &out, func(done, all int64) {
		last.Store(done)
		whole.Store(all)
	})
	if err != nil {
		return err
	}
	if last.Load() == 0 || last.Load() > whole.Load() {
		return fmt.Errorf("progress ended at %d of %d bytes", last.Load(), whole.Load())
	}
	if err := o.checkMerged(ctx, out.Files()); err != nil {
		return err
	}
	if err := o.extract(ctx, out.Files()["model.safetensors"]); err != nil {
		return err
	}
	fmt.Println(len(report.Layers), "tensors updated in memory")
	return nil
}

// checkMerged opens the merged checkpoint from memory and checks that its weights differ from the
// base's.
func (o *outside) checkMerged(ctx context.Context, files map[string][]byte) error {
	weights := files["model.safetensors"]
	before, err := fs.ReadFile(o.files, "testdata/demo/base/model.safetensors")
	if err != nil {
		return err
	}
	if bytes.Equal(weights, before) {
		return errors.New("the merged weights are those of the base")
	}
	base, err := checkpoint.OpenReader(
		ctx, "merged.safetensors", bytes.NewReader(weights), int64(len(weights)))
	if err != nil {
		return err
	}
	return base.Close()
}

// extract extracts the two adapters, of rank 8 and 1, from the merged weights as one of rank 9,
// into an output of this program.
func (o *outside) extract(ctx context.Context, weights []byte) error {
	base, err := checkpoint.OpenFS(ctx, o.files, "testdata/demo/base")
	if err != nil {
		return err
	}
	defer base.Close()
	r := bytes.NewReader(weights)
	tuned, err := checkpoint.OpenReader(ctx, "merged.safetensors", r, r.Size())
	if err != nil {
		return err
	}
	defer tuned.Close()
	out := &bucket{under: "extracted"}
	e, err := rank.NewExtraction(base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: 9}, Output: out})
	if err != nil {
		return err
	}
	defer e.Close()
	src, report, err := e.Run(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := storeTo(ctx, out, convert.PEFT(), src); err != nil {
		return err
	}
	files, at := out.fs()
	back, err := convert.OpenFS(ctx, files, at, convert.Options{})
	if err != nil {
		return err
	}
	if n := len(back.Manifest().Adapters[0].Layers); n != len(report.Layers) || report.Energy < 0.99 {
		return fmt.Errorf("extracted %d layers of %d, energy %v", n, len(report.Layers), report.Energy)
	}
	return back.Close()
}

func (o *outside) cancelHalfWay(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var out output.Memory
	_, err := o.merge(ctx, &out, func(done, all int64) {
		if done >= all/2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		return fmt.Errorf("a merge that was cancelled returned %v", err)
	}
	if files := out.Files(); files != nil {
		return fmt.Errorf("a merge that was cancelled committed %d files", len(files))
	}
	fmt.Println("nothing was committed")
	return nil
}

// container writes the demo's adapter as a .lora file in memory.
func (o *outside) container(ctx context.Context) ([]byte, error) {
	src, err := convert.OpenFS(ctx, o.files, peftAdapter, convert.Options{})
	if err != nil {
		return nil, err
	}
	defer src.Close()
	var file bytes.Buffer
	_, err = format.Write(ctx, &file, src, format.WriterOptions{Tool: "outside"})
	return file.Bytes(), err
}

// readLayers reads a file by position, layer by layer, and once more from a pipe.
func (o *outside) readLayers(ctx context.Context) error {
	file, err := o.container(ctx)
	if err != nil {
		return err
	}
	src, err := convert.OpenReader(ctx, bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	m := src.Manifest()
	for _, l := range m.Adapters[0].Layers[:2] {
		a, err := format.ReadFloats(ctx, src, l.Roles[format.RoleA])
		if err != nil {
			return err
		}
		fmt.Printf("%s: rank %d, scale %g, |A| = %.4f\n", l.Module, l.Rank, l.Scale(), norm(a))
	}
	stream, err := format.NewStreamReader(io.MultiReader(bytes.NewReader(file)), format.ReaderOptions{})
	if err != nil {
		return err
	}
	var n int64
	for piece, err := range stream.Pieces(ctx) {
		if err != nil {
			return err
		}
		n += int64(len(piece.Bytes))
	}
	if n != stream.Summary().RawBytes {
		return fmt.Errorf("the pieces have %d bytes, the summary says %d", n, stream.Summary().RawBytes)
	}
	return nil
}

func norm(values []float64) float64 {
	sum := 0.0
	for _, x := range values {
		sum += x * x
	}
	return math.Sqrt(sum)
}

// printSpectra decomposes an adapter with a known singular value: s·B·A with A = (3 4)ᵀ and B =
// (2).
func (o *outside) printSpectra(ctx context.Context) error {
	b := format.NewBuilder("outside")
	b.Linear("known", 1, 0.5, format.Float64s([]float64{3, 4}), format.Bytes(dtype.F32, []byte{0, 0, 0, 0x40}))
	src, err := b.Source()
	if err != nil {
		return err
	}
	spectra, err := rank.Spectra(ctx, src, 1)
	if err != nil {
		return err
	}
	for _, s := range spectra {
		fmt.Println(s.Module, s.SingularValues)
	}
	if len(spectra) != 1 || len(spectra[0].SingularValues) != 1 || math.Abs(spectra[0].SingularValues[0]-5) > 1e-14 {
		return fmt.Errorf("spectra %+v, want the singular value 5", spectra)
	}
	return nil
}

// readError damages a file and checks the fields of the error.
func (o *outside) readError(ctx context.Context) error {
	file, err := o.container(ctx)
	if err != nil {
		return err
	}
	file[len(file)/2] ^= 1
	_, err = format.Verify(ctx, bytes.NewReader(file), int64(len(file)), format.ReaderOptions{})
	var e *format.Error
	if !errors.As(err, &e) || !errors.Is(err, format.ErrCorrupt) || e.Kind != format.ErrCorrupt || e.Off == 0 || e.Rule == "" {
		return fmt.Errorf("a damaged file: %+v", err)
	}
	fmt.Printf("kind %v, rule %s: %s\n", e.Kind, e.Rule, e.Msg)
	_, err = convert.Open(ctx, filepath.Join(o.root, "testdata/peft/refuse/lfs-pointer/adapter"), convert.Options{})
	if !errors.As(err, &e) || e.Path == "" || e.Hint == "" {
		return fmt.Errorf("a pointer of git-lfs: %+v", err)
	}
	fmt.Println("hint:", e.Hint)
	return nil
}
