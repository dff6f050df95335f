package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// typed is a package with the types of all names in its files, without tests.
type typed struct {
	room  string
	files []*ast.File
	types *types.Package
	info  *types.Info
}

// typedFset holds the positions of all typed packages.
var typedFset = token.NewFileSet()

// typedPackages type-checks the module's packages for linux/amd64, so that every machine counts the
// same. Other packages come from the go command's cache of export data.
var typedPackages = sync.OnceValues(func() ([]typed, error) {
	listed, err := listPackages()
	if err != nil {
		return nil, err
	}
	exports := make(map[string]string)
	for _, p := range listed {
		exports[p.ImportPath] = p.Export
	}
	imp := importer.ForCompiler(typedFset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	var all []typed
	for _, p := range listed {
		room, ours := isOurs(p.ImportPath)
		if !ours {
			continue
		}
		t := typed{room: room}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(typedFset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			t.files = append(t.files, f)
		}
		t.info = &types.Info{Uses: make(map[*ast.Ident]types.Object), Defs: make(map[*ast.Ident]types.Object)}
		config := types.Config{Importer: imp, Sizes: types.SizesFor("gc", "amd64")}
		if t.types, err = config.Check(p.ImportPath, typedFset, t.files, t.info); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
})

// listed is the go command's description of a package.
type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
}

func listPackages() (all []listed, err error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles", module+"/...")
	cmd.Env = append(cmd.Environ(), "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, errors.New(string(exit.Stderr))
	}
	if err != nil {
		return nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
}

// typedModule is typedPackages for a test.
func typedModule(t *testing.T) []typed {
	t.Helper()
	all, err := typedPackages()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 15 {
		t.Fatalf("%d packages were found, want the whole module", len(all))
	}
	return all
}

// fileOf returns the file name of a position, without its directory.
func fileOf(pos token.Pos) string {
	return filepath.Base(typedFset.Position(pos).Filename)
}

// isTop reports whether an object is declared at package level, as a name of its own or a method.
func isTop(obj types.Object, pkg *types.Package) bool {
	if obj.Pkg() != pkg {
		return false
	}
	if f, ok := obj.(*types.Func); ok {
		return f.Signature().Recv() != nil || obj.Parent() == pkg.Scope()
	}
	return obj.Parent() == pkg.Scope()
}

func lines(n ast.Node) int {
	return typedFset.Position(n.End()).Line - typedFset.Position(n.Pos()).Line + 1
}
