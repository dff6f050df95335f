package arch

import (
	"go/types"
	"slices"
	"testing"
)

// library lists the packages that other modules can import.
var library = []string{"format", "format/checkpoint", "format/convert", "format/dtype", "format/output",
	"format/safetensors", "merge", "rank"}

// faces lists the internal types with a public name, and why they live in internal packages. The
// comment on such a name lists the fields, which go doc does not show.
var faces = map[string]string{
	"format.Error":        "internal/fault is below format, and every package makes errors",
	"format.ErrorKind":    "internal/fault is below format, and every package makes errors",
	"convert.OutputError": "internal/fileio is below every package that writes",
	"convert.SpaceError":  "internal/fileio is below every package that writes",
	"merge.OutputError":   "internal/fileio is below every package that writes",
	"merge.SpaceError":    "internal/fileio is below every package that writes",
	"merge.Tied":          "internal/resolve is below merge; the alias lets merge.Reading convert to resolve.Reading",
}

// doors collects the types that a program meets in the library.
type doors struct {
	named map[string]bool     // internal types with a public name
	bad   map[string][]string // from a type without a public name to the places that use it
}

// isPublic reports whether another module can name a type of a package.
func isPublic(pkg *types.Package) bool {
	if pkg == nil {
		return true // error and other built-in types
	}
	room, ours := isOurs(pkg.Path())
	if ours {
		return slices.Contains(library, room)
	}
	return !isForeign(pkg.Path())
}

// fullName returns the name of a type with the path of its package.
func fullName(obj *types.TypeName) string {
	if obj.Pkg() == nil {
		return obj.Name()
	}
	return obj.Pkg().Path() + "." + obj.Name()
}

// meet follows a type to the names in it.
func (d *doors) meet(where string, typ types.Type) {
	name := func(obj *types.TypeName, args *types.TypeList) {
		if full := fullName(obj); !isPublic(obj.Pkg()) && !d.named[full] {
			d.bad[full] = append(d.bad[full], where)
		}
		for arg := range args.Types() {
			d.meet(where, arg)
		}
	}
	switch x := typ.(type) {
	case *types.Alias:
		if isPublic(x.Obj().Pkg()) {
			return
		}
		name(x.Obj(), x.TypeArgs())
	case *types.Named:
		name(x.Obj(), x.TypeArgs())
	case *types.Pointer:
		d.meet(where, x.Elem())
	case *types.Slice:
		d.meet(where, x.Elem())
	case *types.Array:
		d.meet(where, x.Elem())
	case *types.Chan:
		d.meet(where, x.Elem())
	case *types.Map:
		d.meet(where, x.Key())
		d.meet(where, x.Elem())
	case *types.Signature:
		for v := range x.Params().Variables() {
			d.meet(where, v.Type())
		}
		for v := range x.Results().Variables() {
			d.meet(where, v.Type())
		}
	case *types.Struct:
		for field := range x.Fields() {
			if field.Exported() {
				d.meet(where+"."+field.Name(), field.Type())
			}
		}
	case *types.Interface:
		for m := range x.Methods() {
			d.meet(where+"."+m.Name(), m.Type())
		}
	}
}

// object follows an exported object of a package.
func (d *doors) object(where string, obj types.Object) {
	typ, isType := obj.(*types.TypeName)
	if !isType {
		d.meet(where, obj.Type())
		return
	}
	if typ.IsAlias() {
		return // see faces
	}
	d.meet(where, typ.Type().Underlying())
	methods := types.NewMethodSet(types.NewPointer(typ.Type()))
	for m := range methods.Methods() {
		if m.Obj().Exported() {
			d.meet(where+"."+m.Obj().Name(), m.Obj().Type())
		}
	}
}

// TestNoExportedNameNeedsAnInternalType: every type in the library's exported functions has a name
// that a program can use and look up.
func TestNoExportedNameNeedsAnInternalType(t *testing.T) {
	d := &doors{named: make(map[string]bool), bad: make(map[string][]string)}
	packages := typedModule(t)
	met := make(map[string]bool)
	each := func(f func(where string, obj types.Object)) {
		for _, p := range packages {
			if !slices.Contains(library, p.room) {
				continue
			}
			pkg := p.types
			for _, name := range pkg.Scope().Names() {
				if obj := pkg.Scope().Lookup(name); obj.Exported() {
					f(pkg.Name()+"."+name, obj)
				}
			}
		}
	}
	each(func(where string, obj types.Object) {
		typ, ok := obj.(*types.TypeName)
		if !ok || !typ.IsAlias() {
			return
		}
		target, ok := types.Unalias(typ.Type()).(*types.Named)
		if !ok || isPublic(target.Obj().Pkg()) {
			return
		}
		met[where] = true
		d.named[fullName(target.Obj())] = true
		if faces[where] == "" {
			t.Errorf("%s is a name for %s, which is internal, and stands on no list", where, fullName(target.Obj()))
		}
	})
	each(d.object)
	for name, where := range d.bad {
		t.Errorf("%s is internal, or of another module, and is met in %q", name, where)
	}
	for name := range faces {
		if !met[name] {
			t.Errorf("the list has %s, which is no name for an internal type", name)
		}
	}
}
