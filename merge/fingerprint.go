package merge

import (
	"context"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
)

// nFingerprints is the number of base tensors that an adapter remembers. Four tell a fine-tune from
// its base, and comparing them costs no noticeable time.
const nFingerprints = 4

// BaseOf describes the plan's base for the adapter's own record, with fingerprints of up to four
// changed tensors from all over the model. Name and revision are the adapter's own; if it has none,
// they are those of the repository in the hub's cache that the base lies in.
func (p *Plan) BaseOf(ctx context.Context, adapter int) (format.Base, error) {
	base := p.adapters[adapter].Source.Manifest().Adapters[0].Base
	if name, commit := p.base.Repository(); name != "" && (base.Name == "" || base.Name == name) && base.Revision == "" {
		base.Name, base.Revision = name, commit
	}
	base.Fingerprints = make(map[string]string)
	var own []*target
	for _, t := range p.targets {
		isOwn := func(x resolve.Term) bool { return x.Adapter == adapter }
		isDelta := func(d resolve.Delta) bool { return d.Adapter == adapter }
		if slices.ContainsFunc(t.Terms, isOwn) || slices.ContainsFunc(t.Deltas, isDelta) {
			own = append(own, t)
		}
	}
	for i := range min(nFingerprints, len(own)) {
		t := own[i*(len(own)-1)/max(1, min(nFingerprints, len(own))-1)]
		ref, _ := exactRef(p, t.ref.Tensor.Name)
		f, err := fingerprint(ctx, ref)
		if err != nil {
			return base, err
		}
		base.Fingerprints[t.ref.Tensor.Name] = f
	}
	return base, nil
}

// exactRef finds a tensor of the base, a quantised one with its exact values.
func exactRef(p *Plan, name string) (checkpoint.Ref, bool) {
	if p.decoding != nil {
		if ref, ok := p.decoding.exact.Lookup(name); ok {
			return ref, true
		}
	}
	return p.base.Lookup(name)
}

func fingerprint(ctx context.Context, ref checkpoint.Ref) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	t := ref.Tensor
	id, err := format.Fingerprint(t.DType, t.Shape, t.Reader(ctx))
	return id, fault.InFile(err, t.Path())
}

// checkBase compares the base with the fingerprints that the adapter carries. A name that the base
// lacks proves nothing, since checkpoints of one model use different names. A tensor that this plan
// also restores proves nothing either: its original values are not known yet.
func (p *planner) checkBase(ctx context.Context, a *format.Adapter) error {
	var other, unknown []string
	for name, want := range a.Base.Fingerprints {
		if renamed, ok := p.shaped.Renamed[name]; ok {
			name = renamed
		}
		ref, ok := exactRef(p.Plan, name)
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
		p.warn("cannot check that the adapter was made for this base: every tensor that it remembers still holds the adapter that is being removed")
	}
	if len(other) == 0 {
		return nil
	}
	slices.Sort(other)
	e := fault.New(fault.Mismatch, "the adapter was made for another base: %d of %s that it remembers %s here: %s",
		len(other), fault.Count(len(a.Base.Fingerprints), "tensor"), fault.Choose(len(other), "differs", "differ"),
		fault.List(other, 2))
	if name := a.Base.Name; name != "" {
		e.Msg += "; the adapter names " + fault.Quote(name)
	}
	return e.WithHint("use that base, or set Options.AnyBase to merge into this one")
}
