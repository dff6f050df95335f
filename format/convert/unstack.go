package convert

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fileio"
)

// expertStack matches a module whose factors stack those of all experts.
var expertStack = regexp.MustCompile(`^(.*\.experts)\.([a-z_][a-z0-9_]*)$`)

// unstackAlike takes stacks of experts apart where another of the adapters has a module for each
// expert: the factors E×r×n of "experts.up_proj" become those of "experts.0.up_proj" and so on.
func unstackAlike(sources []format.Source) ([]format.Source, error) {
	single := make(map[string]bool) // modules of single experts, without the number
	for _, src := range sources {
		for module := range modulesOf(src) {
			if e := oneExpert.FindStringSubmatch(module); e != nil {
				single[e[1]+"."+e[3]] = true
			}
		}
	}
	all := slices.Clone(sources)
	for i, src := range all {
		if !slices.ContainsFunc(src.Manifest().Adapters[0].Layers, func(l format.Layer) bool { return isStack(src, &l, single) }) {
			continue
		}
		var err error
		if all[i], err = newUnstacked(src, single); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// isStack reports whether a layer stacks the factors of experts that are single elsewhere.
func isStack(src format.Source, l *format.Layer, single map[string]bool) bool {
	if !single[l.Module] || !expertStack.MatchString(l.Module) || len(l.Roles) != 2 {
		return false
	}
	for _, role := range []format.Role{roleA, roleB} {
		if i, ok := l.Roles[role]; !ok || len(src.Manifest().Tensors[i].Shape) != 3 {
			return false
		}
	}
	return true
}

// unstacked is a source with a layer for each expert.
type unstacked struct {
	format.Source
	manifest format.Manifest
	slabs    []slab // of the tensors
}

// slab is where a tensor begins in one of the source.
type slab struct {
	tensor int
	off    int64
}

func newUnstacked(src format.Source, single map[string]bool) (*unstacked, error) {
	u := &unstacked{Source: src, manifest: *src.Manifest()}
	a := u.manifest.Adapters[0]
	layers := a.Layers
	a.Layers, a.Beside = nil, slices.Clone(a.Beside)
	u.manifest.Tensors, u.manifest.Attachments = nil, nil
	for _, l := range layers {
		if !isStack(src, &l, single) {
			roles := make(map[format.Role]int)
			for _, role := range slices.Sorted(maps.Keys(l.Roles)) {
				roles[role] = u.keep(l.Roles[role])
			}
			l.Roles = roles
			a.Layers = append(a.Layers, l)
			continue
		}
		experts, err := u.take(&l)
		if err != nil {
			return nil, err
		}
		a.Layers = append(a.Layers, experts...)
		a.Requires = slices.DeleteFunc(slices.Clone(a.Requires), func(q format.Requirement) bool {
			return q.Feature == format.FeatureExpertFactors && strings.HasPrefix(q.Where, l.Module+":")
		})
	}
	for i := range a.Beside {
		a.Beside[i].Tensor = u.keep(a.Beside[i].Tensor)
	}
	u.manifest.Adapters = []format.Adapter{a}
	return u, nil
}

// keep adds a tensor of the source, and returns its number.
func (u *unstacked) keep(i int) int {
	return u.add(u.Source.Manifest().Tensors[i], slab{tensor: i})
}

func (u *unstacked) add(t format.Tensor, p slab) int {
	u.manifest.Tensors, u.slabs = append(u.manifest.Tensors, t), append(u.slabs, p)
	return len(u.slabs) - 1
}

// take makes the layers of the experts of a stack. An expert whose A and B are zeros is one that
// the adapter does not change.
func (u *unstacked) take(l *format.Layer) (layers []format.Layer, err error) {
	e := expertStack.FindStringSubmatch(l.Module)
	tensors := u.Source.Manifest().Tensors
	a, b := &tensors[l.Roles[roleA]], &tensors[l.Roles[roleB]]
	for expert := range max(a.Shape[0], b.Shape[0]) {
		one := *l
		one.Module, one.Kind, one.Roles = fmt.Sprintf("%s.%d.%s", e[1], expert, e[2]), format.Linear, make(map[format.Role]int)
		inA, inB := slabOf(a, l.Roles[roleA], expert), slabOf(b, l.Roles[roleB], expert)
		isZero, err := u.isZero(a, inA)
		if err == nil && isZero {
			isZero, err = u.isZero(b, inB)
		}
		if err != nil {
			return nil, err
		}
		if isZero {
			continue
		}
		one.Roles[roleA] = u.add(format.Tensor{Name: one.Module + "." + string(roleA), DType: a.DType, Shape: a.Shape[1:]}, inA)
		one.Roles[roleB] = u.add(format.Tensor{Name: one.Module + "." + string(roleB), DType: b.DType, Shape: b.Shape[1:]}, inB)
		layers = append(layers, one)
	}
	return layers, nil
}

// slabOf returns the part of a tensor that belongs to an expert. All experts may share one.
func slabOf(t *format.Tensor, i int, expert uint64) slab {
	return slab{i, int64(min(expert, t.Shape[0]-1)) * (t.NBytes() / int64(t.Shape[0]))}
}

// isZero reports whether a part has zeros alone.
func (u *unstacked) isZero(t *format.Tensor, p slab) (bool, error) {
	data := make([]byte, t.NBytes()/int64(t.Shape[0]))
	err := u.Source.ReadBlobAt(data, p.tensor, p.off)
	return !slices.ContainsFunc(data, func(b byte) bool { return b != 0 }), err
}

func (u *unstacked) Manifest() *format.Manifest { return &u.manifest }

func (u *unstacked) Unchanged() error { return fileio.Unchanged(u.Source) }

func (u *unstacked) ReadBlobAt(p []byte, i int, off int64) error {
	return u.Source.ReadBlobAt(p, u.slabs[i].tensor, u.slabs[i].off+off)
}
