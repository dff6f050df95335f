package merge

import (
	"context"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
)

// nFingerprints is how many tensors of a base an adapter remembers: enough to tell a fine-tune of
// the base from it, and few enough that comparing them costs no noticeable time.
const nFingerprints = 4

// BaseOf says which base a plan has, for the adapter's own record: the fingerprints of a few of the
// tensors that change, spread over the model. Name and revision are those that the adapter states.
func (p *Plan) BaseOf(ctx context.Context, adapter int) (format.Base, error) {
	base := p.adapters[adapter].Source.Manifest().Adapters[0].Base
	base.Fingerprints = make(map[string]string)
	var own []*target
	for _, t := range p.targets {
		for _, term := range t.Terms {
			if term.Adapter == adapter {
				own = append(own, t)
				break
			}
		}
	}
	for i := range min(nFingerprints, len(own)) {
		t := own[i*(len(own)-1)/max(1, min(nFingerprints, len(own))-1)]
		f, err := fingerprint(ctx, t.ref)
		if err != nil {
			return base, err
		}
		base.Fingerprints[t.ref.Tensor.Name] = f
	}
	return base, nil
}

func fingerprint(ctx context.Context, ref checkpoint.Ref) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	t := ref.Tensor
	id, err := format.Fingerprint(t.DType, t.Shape, t.Reader(ctx))
	return id, fault.InFile(err, t.Path())
}

// checkBase compares the tensors that an adapter remembers of its base with those of the base that
// is there. A name that this base does not have says nothing: the same model can be stored under
// other names. Nor does a tensor from which a merge is taken out: its values before that are not
// known yet.
func (p *planner) checkBase(ctx context.Context, a *format.Adapter) error {
	var other, unknown []string
	for name, want := range a.Base.Fingerprints {
		if renamed, ok := p.shaped.Renamed[name]; ok {
			name = renamed
		}
		ref, ok := p.base.Lookup(name)
		if !ok {
			continue
		}
		if t := p.targets[name]; t != nil && len(t.undo) > 0 {
			unknown = append(unknown, name)
			continue
		}
		got, err := fingerprint(ctx, ref)
		if err != nil {
			return err
		}
		if got != want {
			other = append(other, name)
		}
	}
	if len(other) == 0 && len(unknown) > 0 && len(unknown) == len(a.Base.Fingerprints) {
		p.warn("whether the adapter was made for this base is not compared: what it remembers are tensors from which another one is taken out")
	}
	if len(other) == 0 {
		return nil
	}
	e := fault.New(fault.Mismatch, "this is not the base that the adapter was made for: it has other values in %s", fault.List(other, 2))
	if name := a.Base.Name; name != "" {
		e.Msg += "; the adapter names " + fault.Quote(name)
	}
	return e.WithHint("give that base; to merge into this one all the same, set Options.AnyBase")
}
