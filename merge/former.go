package merge

import (
	"bytes"
	"context"
	"io"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/undo"
)

// shapeBefore returns the shape that a tensor has in the base, before the plan adds rows. ok is
// false for a tensor that the plan adds.
func shapeBefore(p *Plan, t *target) (shape []uint64, ok bool) {
	if len(p.shaped.Edits) == 0 {
		return t.Shape, true
	}
	ref, ok := p.stored.Lookup(t.Name)
	if !ok {
		return nil, false
	}
	return ref.Tensor.Shape, true
}

// former describes the files that a merge with a record changes, and what they had before it.
type former struct {
	files []undo.File
	side  []undo.Side
	undo.Before
}

// formerOf collects what the files have before the plan's merge. Every file has its header from
// restoreHeaders.
func formerOf(ctx context.Context, p *Plan) (*former, error) {
	if err := checkTwins(ctx, p); err != nil {
		return nil, err
	}
	x := &former{Before: undo.Before{Headers: make([][]byte, len(p.files))}}
	for i, f := range p.files {
		file := undo.File{Name: p.nameOf(f), Before: f.before.identity, After: f.before.identity, Rest: []uint32{}}
		if f.isStamped {
			after, err := newHeader(ctx, p, f)
			if err != nil {
				return nil, err
			}
			x.Headers[i], file.After = f.before.header.Raw, undo.HeaderOf(after)
		}
		if len(p.shaped.Edits) > 0 && p.stored.Files[i] != f.in {
			h, err := p.stored.Files[i].Header(ctx)
			if err != nil {
				return nil, err
			}
			x.Headers[i], file.Before = h.Raw, undo.HeaderOf(h.Raw)
		}
		x.files = append(x.files, file)
	}
	if p.removed.is() {
		return x, nil // the files beside the weights are as they were, but for those of the removed merges
	}
	return x, x.addSide(p)
}

// checkTwins refuses a plan that unties a head which the base stores beside the embedding with
// other values: the plan takes those of the embedding, as programs do for a tied model, and so does
// a removal.
func checkTwins(ctx context.Context, p *Plan) error {
	for _, e := range p.shaped.Edits {
		for _, t := range e.Tensors {
			head, ok := p.stored.Lookup(t.Name)
			if !ok || t.From == "" || t.From == t.Name {
				continue
			}
			embedding, same := p.stored.Lookup(t.From)
			if same {
				var err error
				if same, err = areEqual(ctx, head.Tensor, embedding.Tensor); err != nil {
					return err
				}
			}
			if !same {
				return fault.New(fault.Unsupported, "the base ties %q to %q and stores it with other values, which an undo record cannot bring back", t.Name, t.From).In(head.Tensor.Path()).
					WithHint("merge without Options.Undo, and keep the base")
			}
		}
	}
	return nil
}

// areEqual reports whether two tensors have the same bytes.
func areEqual(ctx context.Context, a, b *checkpoint.Tensor) (bool, error) {
	if a.DType != b.DType || a.NBytes != b.NBytes {
		return false, nil
	}
	var pieces [2][]byte
	for off := int64(0); off < a.NBytes; off += defaultBlockBytes {
		for i, t := range []*checkpoint.Tensor{a, b} {
			pieces[i] = append(pieces[i][:0], make([]byte, min(defaultBlockBytes, t.NBytes-off))...)
			if err := t.ReadAt(ctx, pieces[i], off); err != nil {
				return false, err
			}
		}
		if !bytes.Equal(pieces[0], pieces[1]) {
			return false, nil
		}
	}
	return true, nil
}

// addSide adds the files beside the weights that the plan changes.
func (x *former) addSide(p *Plan) error {
	for _, name := range p.base.Side {
		after, ok := p.side[name]
		if !ok {
			continue
		}
		in, err := p.base.OpenSide(name)
		if err != nil {
			return err
		}
		before, err := readSide(in)
		if err != nil {
			return err
		}
		if before == nil || len(after) > undo.MaxSideBytes {
			return fault.New(fault.Limit, "the file is too large for an undo record; the limit is %d bytes", undo.MaxSideBytes).In(in.Path)
		}
		x.side = append(x.side, undo.Side{Name: name, Before: undo.HeaderOf(before), After: undo.HeaderOf(after)})
		x.Side = append(x.Side, before)
	}
	return nil
}

// readSide reads a file beside the weights, and closes it. It returns nil for one of more than
// undo.MaxSideBytes.
func readSide(in *fileio.Input) ([]byte, error) {
	defer in.Close()
	if in.Size > undo.MaxSideBytes {
		return nil, nil
	}
	text := make([]byte, in.Size)
	_, err := io.ReadFull(io.NewSectionReader(in, 0, in.Size), text)
	return text, fault.InFile(err, in.Path)
}
