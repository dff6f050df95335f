package pickle

import (
	"slices"

	"github.com/loratool/loratool/internal/fault"
)

// wrappers are the keys under which trainers put a state dict into a larger checkpoint.
var wrappers = []string{"state_dict", "model_state_dict", "model", "module"}

// maxWrappers bounds how deep a state dict lies.
const maxWrappers = 3

// take finds the state dict in the value of a pickle, and lists its tensors.
func (f *File) take(top any) error {
	for range maxWrappers {
		d, ok := top.(*dict)
		if !ok {
			return fault.New(fault.Unsupported, "the pickle holds %s, want a dictionary of tensors by name", describe(top)).WithHint("%s", hintResave)
		}
		if len(d.entries) == 0 || slices.ContainsFunc(d.entries, func(e entry) bool { _, ok := e.value.(*Tensor); return ok }) {
			return f.list(d)
		}
		at := slices.IndexFunc(d.entries, func(e entry) bool {
			name, _ := e.key.(string)
			_, ok := e.value.(*dict)
			return ok && slices.Contains(wrappers, name)
		})
		if at < 0 {
			break
		}
		for i, e := range d.entries {
			if name, ok := e.key.(string); ok && i != at {
				f.Left = append(f.Left, name)
			}
		}
		top = d.entries[at].value
	}
	return fault.New(fault.Unsupported, "the pickle holds no dictionary of tensors by name, at its top or under %q", wrappers).WithHint("%s", hintResave)
}

// list fills Tensors from a state dict. Plain values beside the tensors are left; anything larger may hold weights, and is
// refused.
func (f *File) list(d *dict) error {
	seen := make(map[string]bool, len(d.entries))
	for _, e := range d.entries {
		name, ok := e.key.(string)
		switch {
		case !ok:
			return fault.New(fault.Unsupported, "the state dict has %s for a key, which is no string", describe(e.key)).WithHint("%s", hintResave)
		case seen[name]:
			return fault.New(fault.Corrupt, "the state dict has the key %q twice", name)
		}
		seen[name] = true
		switch v := e.value.(type) {
		case *Tensor:
			t := *v
			t.Name = name
			f.Tensors = append(f.Tensors, t)
		case nil, bool, int64, long, float64, string:
			f.Left = append(f.Left, name)
		default:
			return fault.New(fault.Unsupported, "%q of the state dict is %s, not a tensor", name, describe(v)).WithHint("%s", hintResave)
		}
	}
	return nil
}
