package pickle

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// wrappers lists the keys under which trainers nest a state dict in a larger checkpoint.
var wrappers = []string{"state_dict", "model_state_dict", "model", "module"}

// maxWrappers bounds how deeply a state dict is nested.
const maxWrappers = 3

// LayoutError reports tensors that are not in one dictionary by name. It wraps a *fault.Error.
type LayoutError struct {
	Keys     []string // of the tensors in nested dictionaries, joined by dots
	NInLists int      // tensors in lists, where they have no names
	// IsOptimizer reports that the value is the state of a torch optimizer.
	IsOptimizer bool
	err         *fault.Error
}

func (e *LayoutError) Error() string { return e.err.Error() }
func (e *LayoutError) Unwrap() error { return e.err }

// Names returns the names of the tensors in nested dictionaries.
func (e *LayoutError) Names() []string { return e.Keys }

// layout adds to err where the tensors are in a value that is not a state dict.
func layout(top any, err *fault.Error) error {
	e := &LayoutError{err: err}
	if d, ok := top.(*dict); ok {
		e.IsOptimizer = slices.ContainsFunc(d.entries, func(x entry) bool { return x.key == "param_groups" })
	}
	e.collect("", top, 0)
	if len(e.Keys) > 0 {
		err.Msg += fmt.Sprintf("; %d tensors lie in nested dictionaries, the first as %q", len(e.Keys), e.Keys[0])
	}
	return e
}

// collect finds the tensors below a value. A value may contain itself, so the depth is bounded.
func (e *LayoutError) collect(path string, v any, depth int) {
	const maxDepth, maxKeys = 8, 1 << 16
	if depth > maxDepth || len(e.Keys) > maxKeys {
		return
	}
	switch v := v.(type) {
	case *Tensor:
		e.Keys = append(e.Keys, strings.TrimPrefix(path, "."))
	case *dict:
		for _, x := range v.entries {
			name, ok := x.key.(string)
			if !ok {
				name = fmt.Sprint(x.key)
			}
			e.collect(path+"."+name, x.value, depth+1)
		}
	case *list:
		for _, x := range v.items {
			if _, ok := x.(*Tensor); ok {
				e.NInLists++
			}
		}
	}
}

// take finds the state dict in the value of a pickle and lists its tensors.
func (f *File) take(top any) error {
	for range maxWrappers {
		d, ok := top.(*dict)
		if !ok {
			return layout(top, fault.New(fault.Unsupported, "the pickle holds %s, want a dictionary of tensors by name", describe(top)).WithHint("%s", hintResave))
		}
		if len(d.entries) == 0 || slices.ContainsFunc(d.entries, func(e entry) bool { return isTensor(e.value) }) {
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
	return layout(top, fault.New(fault.Unsupported, "the pickle holds no dictionary of tensors by name, neither at its top level nor under %s", fault.List(wrappers, len(wrappers))).WithHint("%s", hintResave))
}

// takeNested lists the tensors of a value at any depth of dictionaries, lists and tuples. It skips
// plain values and refuses anything else.
func (f *File) takeNested(path string, v any, depth int) error {
	if depth > maxNesting {
		return fault.New(fault.Limit, "the values of the pickle are nested more than %d deep", maxNesting)
	}
	switch v := v.(type) {
	case *Tensor:
		if len(f.Tensors) == maxTensors {
			return fault.New(fault.Limit, "the pickle holds more than %d tensors", maxTensors)
		}
		t := *v
		t.Name = path
		f.Tensors = append(f.Tensors, t)
	case *part:
		return v.refuse(path)
	case *dict:
		for _, x := range v.entries {
			name, ok := x.key.(string)
			if n, isInt := x.key.(int64); isInt {
				name, ok = strconv.FormatInt(n, 10), true
			}
			if !ok {
				return fault.New(fault.Unsupported, "a dictionary has %s as a key, want a string", describe(x.key)).WithHint("%s", hintResave)
			}
			if err := f.takeNested(join(path, name), x.value, depth+1); err != nil {
				return err
			}
		}
	case *list:
		return f.takeItems(path, v.items, depth)
	case tuple:
		return f.takeItems(path, v, depth)
	case nil, bool, int64, long, float64, string:
		f.Left = append(f.Left, path)
	default:
		return fault.New(fault.Unsupported, "%q in the pickle is %s, want a tensor", path, describe(v)).WithHint("%s", hintResave)
	}
	return nil
}

func (f *File) takeItems(path string, items []any, depth int) error {
	for i, x := range items {
		if err := f.takeNested(join(path, strconv.Itoa(i)), x, depth+1); err != nil {
			return err
		}
	}
	return nil
}

const (
	maxNesting = 16
	maxTensors = 1 << 20
)

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// checkDistinct refuses two tensors of the same name. Joined keys can collide.
func (f *File) checkDistinct() error {
	seen := make(map[string]bool, len(f.Tensors))
	for i := range f.Tensors {
		if name := f.Tensors[i].Name; seen[name] {
			return fault.New(fault.Unsupported, "two tensors of the pickle have the name %q", name).WithHint("%s", hintResave)
		}
		seen[f.Tensors[i].Name] = true
	}
	return nil
}

// list fills Tensors from a state dict. It skips plain values beside the tensors, and refuses
// anything larger, which may hold weights.
func (f *File) list(d *dict) error {
	seen := make(map[string]bool, len(d.entries))
	for _, e := range d.entries {
		name, ok := e.key.(string)
		switch {
		case !ok:
			return fault.New(fault.Unsupported, "the state dict has %s as a key, want a string", describe(e.key)).WithHint("%s", hintResave)
		case seen[name]:
			return fault.New(fault.Corrupt, "the state dict repeats the key %q", name)
		}
		seen[name] = true
		switch v := e.value.(type) {
		case *Tensor:
			t := *v
			t.Name = name
			f.Tensors = append(f.Tensors, t)
		case *part:
			return v.refuse(name)
		case nil, bool, int64, long, float64, string:
			f.Left = append(f.Left, name)
		default:
			return layout(d, fault.New(fault.Unsupported, "%q in the state dict is %s, want a tensor", name, describe(v)).WithHint("%s", hintResave))
		}
	}
	return nil
}
