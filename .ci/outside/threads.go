package main

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/format/safetensors"
)

// threads is an invented dialect: a safetensors file with the keys MODULE/weft (A) and MODULE/warp
// (B), and each module's scale in the metadata under scale/MODULE. It supports linear layers only.
type threads struct{}

const (
	mark  = "threads" // a key of the metadata
	weft  = "/weft"
	warp  = "/warp"
	scale = "scale/"
)

func (threads) Name() string                     { return "threads" }
func (threads) Writes(ext string) bool           { return ext == ".thread" }
func (threads) Recognise(in *convert.Input) bool { return in.Metadata()[mark] != "" }

func (threads) Open(_ context.Context, in *convert.Input, _ convert.Options) (format.Source, error) {
	tensors := in.Tensors()
	byName := make(map[string]int, len(tensors))
	for i, t := range tensors {
		byName[t.Name] = i
	}
	data := func(i int) format.Data {
		return format.Read(tensors[i], func(p []byte, off int64) error { return in.ReadBlobAt(p, i, off) })
	}
	b := format.NewBuilder("threads")
	for name, a := range byName {
		module, isWarp := strings.CutSuffix(name, warp)
		if isWarp {
			if _, ok := byName[module+weft]; !ok {
				return nil, format.Errorf(format.ErrCorrupt, "%q has no %s", name, weft).In(in.Path())
			}
			continue
		}
		module, isWeft := strings.CutSuffix(name, weft)
		other, ok := byName[module+warp]
		if !isWeft || !ok || len(tensors[a].Shape) != 2 {
			return nil, format.Errorf(format.ErrCorrupt, "%q has no place in an adapter", name).In(in.Path())
		}
		s, err := strconv.ParseFloat(in.Metadata()[scale+module], 64)
		if err != nil {
			return nil, format.Errorf(format.ErrCorrupt, "no scale for %q", module).In(in.Path()).WithHint("weave it again")
		}
		b.Linear(module, int(tensors[a].Shape[0]), s, data(a), data(other))
	}
	return b.Source()
}

func (threads) Create(path string, o convert.CreateOptions) (format.Sink, error) {
	return loomAt{path: path, options: o}, nil
}

func (threads) CreateTo(out output.Output, _ convert.CreateOptions) (format.Sink, error) {
	return loom{out}, nil
}

// loomAt writes the dialect to a path, complete or not at all.
type loomAt struct {
	loom
	path    string
	options convert.CreateOptions
}

func (l loomAt) Store(ctx context.Context, src format.Source) error {
	disk, err := output.NewDisk(l.path, output.DiskOptions{Replace: l.options.Replace})
	if err != nil {
		return err
	}
	sink, err := convert.CreateTo(disk, threads{}, l.options)
	if err != nil {
		disk.Abort()
		return err
	}
	return sink.Store(ctx, src)
}

// loom writes the dialect.
type loom struct{ out output.Output }

// Check runs before any work.
func (l loom) Check(_ context.Context, src format.Source) error {
	if src == nil {
		return nil
	}
	a := &src.Manifest().Adapters[0]
	for _, layer := range a.Layers {
		if layer.Kind != format.Linear || len(layer.Roles) != 2 {
			return format.Errorf(format.ErrUnsupported, "%s is no plain linear layer, and threads have no other", layer.Module)
		}
	}
	if len(a.Beside)+len(a.Requires) > 0 {
		return format.Errorf(format.ErrUnsupported, "the adapter has more than layers, and threads do not")
	}
	return nil
}

func (l loom) Store(ctx context.Context, src format.Source) error {
	if err := l.Check(ctx, src); err != nil {
		return err
	}
	m := src.Manifest()
	metadata := map[string]string{mark: "1"}
	var tensors []format.Tensor
	var from []int
	for _, layer := range m.Adapters[0].Layers {
		metadata[scale+layer.Module] = strconv.FormatFloat(layer.Scale(), 'g', -1, 64)
		for role, tail := range map[format.Role]string{format.RoleA: weft, format.RoleB: warp} {
			t := m.Tensors[layer.Roles[role]]
			t.Name = layer.Module + tail
			tensors, from = append(tensors, t), append(from, layer.Roles[role])
		}
	}
	f, err := l.out.Create(output.Info{})
	if err != nil {
		return err
	}
	err = safetensors.Write(ctx, io.NewOffsetWriter(f, 0), tensors, metadata, func(p []byte, i int, off int64) error {
		return src.ReadBlobAt(p, from[i], off)
	})
	if err != nil {
		return err
	}
	return f.Close()
}
