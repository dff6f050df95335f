package arch

import (
	"bytes"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// library are the packages that a program outside this module can use.
var library = []string{"format", "format/dtype", "format/convert", "format/safetensors", "merge", "rank"}

// faces are the types of internal packages that have a public name, and why they live where they do. The comment on such
// a name lists the fields, which go doc does not show.
var faces = map[string]string{
	"format.Error":        "internal/fault is below format, and every package makes errors",
	"format.ErrorKind":    "internal/fault is below format, and every package makes errors",
	"convert.OutputError": "internal/fileio is below every package that writes",
	"convert.SpaceError":  "internal/fileio is below every package that writes",
	"merge.OutputError":   "internal/fileio is below every package that writes",
	"merge.SpaceError":    "internal/fileio is below every package that writes",
	"merge.Merged":        "inspect reads what checkpoint does",
	"merge.Stamp":         "inspect reads what checkpoint does",
	"merge.StampAdapter":  "inspect reads what checkpoint does",
}

// load type-checks the library, from what the compiler has left in its cache.
func load(t *testing.T) []*types.Package {
	t.Helper()
	var failure bytes.Buffer
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", "./format/...", "./merge", "./rank")
	list.Dir, list.Stderr = "../..", &failure
	text, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, failure.Bytes())
	}
	exports := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[path] = file
	}
	imp := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	var all []*types.Package
	for _, room := range library {
		pkg, err := imp.Import(module + "/" + room)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, pkg)
	}
	return all
}

// doors looks at the types that a program meets in the library.
type doors struct {
	named map[*types.TypeName]bool // internal types that have a public name
	bad   map[string][]string      // from a type that cannot be named to where it is met
}

// isPublic reports whether a program outside can name a type of a package.
func isPublic(pkg *types.Package) bool {
	if pkg == nil {
		return true // error, and what is built in
	}
	room, ours := isOurs(pkg.Path())
	if ours {
		return slices.Contains(library, room)
	}
	return !isForeign(pkg.Path())
}

// meet follows a type to the names in it.
func (d *doors) meet(where string, typ types.Type) {
	name := func(obj *types.TypeName, args *types.TypeList) {
		if !isPublic(obj.Pkg()) && !d.named[obj] {
			d.bad[obj.Pkg().Path()+"."+obj.Name()] = append(d.bad[obj.Pkg().Path()+"."+obj.Name()], where)
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

// TestNoExportedNameNeedsAnInternalType: whatever a program gets from the library, or gives to it, has a type that the program
// can name and look up.
func TestNoExportedNameNeedsAnInternalType(t *testing.T) {
	d := &doors{named: make(map[*types.TypeName]bool), bad: make(map[string][]string)}
	packages := load(t)
	met := make(map[string]bool)
	each := func(f func(where string, obj types.Object)) {
		for _, pkg := range packages {
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
		d.named[target.Obj()] = true
		if faces[where] == "" {
			t.Errorf("%s is a name for %s.%s, which is internal, and stands on no list", where, target.Obj().Pkg().Path(), target.Obj().Name())
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
