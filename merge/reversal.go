package merge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/outline"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// reversal makes the base as it was before the merge of a record: with the headers and the files
// beside the weights of that time, and without the tensors and rows that the merge added.
type reversal struct {
	*planner
	*Record
}

// run reverses the merge. merged has the changes of the merge that the record does not undo.
func (r *reversal) run(ctx context.Context, merged map[string]*resolve.Change) error {
	headers, err := r.readHeaders()
	if err != nil {
		return err
	}
	if err := r.restoreSide(ctx); err != nil {
		return err
	}
	if err := r.cut(headers); err != nil {
		return err
	}
	for name := range merged {
		if _, ok := r.base.Lookup(name); ok { // the merge did not add it
			return otherReading(name)
		}
	}
	return nil
}

// readHeaders reads the headers that files had before the merge, by the number of the file.
func (r *reversal) readHeaders() (map[int]*checkpoint.Header, error) {
	headers := make(map[int]*checkpoint.Header)
	for i := range r.record.Files {
		if !r.record.Files[i].Changed() {
			continue
		}
		raw, err := r.record.HeaderBytes(i)
		if err != nil {
			return nil, err
		}
		h, err := checkpoint.ParseHeader(raw)
		if err != nil {
			return nil, err
		}
		f := fileOf(r.base, r.record, i)
		headers[f], r.restored[f] = h, restored{r.record.Files[i].Before, h}
	}
	return headers, nil
}

// restoreSide gives the files beside the weights their contents from before the merge.
func (r *reversal) restoreSide(ctx context.Context) error {
	for i := range r.record.Side {
		s := &r.record.Side[i]
		now, err := r.sideNow(s.Name)
		if err != nil {
			return err
		}
		if now == nil || undo.HeaderOf(now) != s.After {
			e := fault.New(fault.Mismatch, "the merge wrote a file %q of %d bytes with the SHA-256 %s, and the checkpoint has another one, or none", s.Name, s.After.Bytes, s.After.SHA256)
			e.Rule = undo.RuleSide
			return e.WithHint("give the whole directory that merge wrote, with the file as it was")
		}
		if r.side[s.Name], err = r.record.SideBytes(i); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// sideNow returns the content of a file beside the weights, as far as the merges have been removed;
// nil if there is none of at most undo.MaxSideBytes.
func (r *reversal) sideNow(name string) ([]byte, error) {
	if text, ok := r.side[name]; ok || !slices.Contains(r.base.Side, name) {
		return text, nil
	}
	in, err := r.base.OpenSide(name)
	if err != nil {
		return nil, err
	}
	return readSide(in)
}

// cut drops the tensors and rows that a merge added.
func (r *reversal) cut(headers map[int]*checkpoint.Header) error {
	if r.record.Version == 1 || r.decoding != nil {
		return fitsAll(checkpoint.Stored(r.base), headers)
	}
	text := r.side[checkpoint.ConfigName]
	base, err := checkpoint.Cut(r.base, headers, text)
	if broken := (*fault.Error)(nil); errors.As(err, &broken) {
		broken.Rule = undo.RuleShape
	}
	if err != nil {
		return err
	}
	for i := range r.record.Tensors {
		d := &r.record.Tensors[i]
		if ref, ok := base.Lookup(d.Name); !ok || !slices.Equal(ref.Tensor.Shape, d.Shape) {
			return &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleShape, Msg: fmt.Sprintf("the header from before the merge has no tensor %q of shape %d", d.Name, d.Shape)}
		}
	}
	if base == r.base {
		return nil
	}
	r.base, r.isCut = base, true
	if r.names, err = outline.Of(base); err == nil && text != nil {
		r.names.ConfigText = text
	}
	return err
}

// fitsAll checks that files have the tensors of other headers, at their places.
func fitsAll(base *checkpoint.Checkpoint, headers map[int]*checkpoint.Header) error {
	for i, h := range headers {
		if f := base.Files[i]; !f.Fits(h) {
			return &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleBefore, Msg: fmt.Sprintf("the header from before the merge lists other tensors than %s has", f.Path)}
		}
	}
	return nil
}

// fit fits the targets of all removals to a base without the tensors and rows that merges added.
func fit(p *planner) error {
	if !p.isCut {
		return nil
	}
	for name, t := range p.targets {
		ref, ok := p.base.Lookup(name)
		isOther := func(s step) bool { return !ok || !slices.Equal(s.shape, ref.Tensor.Shape) }
		if i := slices.IndexFunc(t.undo, isOther); i >= 0 {
			return fault.New(fault.Unsupported, "the merge changed %q, and an earlier one had added the tensor, or rows of it", name).In(t.undo[i].name).
				WithHint("unmerge one merge at a time, the latest first")
		}
		if !slices.Equal(t.Shape, ref.Tensor.Shape) && t.Stacked {
			return otherReading(name)
		}
		t.ref, t.Shape = ref, ref.Tensor.Shape
	}
	return nil
}
