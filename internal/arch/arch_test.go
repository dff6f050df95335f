// Package arch tests the architecture: which package may import which, which may use a foreign
// module, and where goroutines start. It parses every package for every system, so that no build
// tag hides an import. A new import is a new line in arrows, with its reason:
//
//	go test ./internal/arch
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/loratool/loratool"

// arrows lists the imports between packages of this module, outside tests, with their reasons.
var arrows = map[string]map[string]string{
	"cmd/loratool": {
		"format":              "names of an adapter's parts, kinds of error",
		"format/checkpoint":   "the checkpoints that diff compares",
		"format/convert":      "the dialect's door",
		"format/dtype":        "the dtype of extracted factors",
		"format/output":       "the directory that a bundle is split into",
		"merge":               "the walk",
		"rank":                "extraction",
		"internal/audit":      "the judge of merges",
		"internal/checkpoint": "inspect opens checkpoints",
		"internal/fault":      "exit codes and hints",
		"internal/fileio":     "free space for the plan, inputs that are files",
		"internal/page":       "reports as pages",
		"internal/quant":      "the names of encodings",
		"internal/report":     "reports on adapters, checkpoints and undo records",
		"internal/resolve":    "the table of applied features",
	},
	"format": {
		"format/dtype":         "dtypes of tensors",
		"internal/fault":       "the kinds of error that it exports",
		"internal/fileio":      "files that are opened by their path",
		"internal/jsontext":    "the manifest",
		"internal/parallel":    "chunks on workers",
		"internal/safetensors": "other kinds of file, for errors",
	},
	"format/safetensors": {
		"format":               "tensors, and its kinds of error",
		"format/dtype":         "the order of dtypes in a file",
		"internal/fault":       "errors of input",
		"internal/safetensors": "the strict header check, and headers",
	},
	"format/checkpoint": {"internal/checkpoint": "what it opens"},
	"format/output":     {"internal/fileio": "outputs on a disk, which appear whole"},
	"format/convert": {
		"internal/delta":        "the sizes of updates that are no thin products",
		"format/dtype":          "alphas that are tensors",
		"internal/architecture": "the modules that flat names stand for",
		"internal/card":         "the base that a model card names",
		"format":                "adapters, its result",
		"format/output":         "the output's door",
		"format/safetensors":    "weights files that it writes",
		"internal/fault":        "errors of input",
		"internal/jsontext":     "configurations, by exact keys",
		"internal/config":       "the heads and experts of a base",
		"internal/gguf":         "the container of llama.cpp",
		"internal/npz":          "arrays of NumPy's archives",
		"internal/fileio":       "whether an output may be written, inputs that are files",
		"internal/naming":       "wrappers in module names",
		"internal/pickle":       "tensors of torch.save",
		"internal/pyre":         "keys of rank_pattern and alpha_pattern",
		"internal/safetensors":  "the strict header check",
		"internal/shards":       "adapters in several files",
	},
	"merge": {
		"format":              "adapters",
		"format/dtype":        "elements",
		"format/checkpoint":   "the base's door",
		"format/output":       "the output's door",
		"internal/checkpoint": "the base",
		"internal/config":     "the configuration of a base whose quantised weights are decoded",
		"internal/fault":      "errors of input",
		"internal/fileio":     "whether an output may be written, permissions of inputs",
		"internal/delta":      "updates that are no thin products",
		"internal/kernel":     "the arithmetic",
		"internal/naming":     "whether an output to replace has the names of an adapter",
		"internal/outline":    "the base as package resolve sees it",
		"internal/parallel":   "blocks of rows on workers",
		"internal/resolve":    "the changes that adapters make",
		"internal/principal":  "the residuals of PiSSA and OLoRA",
		"internal/undo":       "the undo record",
	},
	"rank": {
		"internal/delta":      "updates of LyCORIS that become thin",
		"format":              "adapters",
		"format/dtype":        "elements",
		"format/checkpoint":   "the base's door",
		"format/output":       "where the factors of an extraction wait",
		"internal/dense":      "transposes and products",
		"internal/thin":       "spectra and truncations of thin products",
		"internal/checkpoint": "base and fine-tune",
		"internal/fault":      "errors of input",
		"internal/fileio":     "sizes in warnings",
		"internal/kernel":     "the thin products",
		"internal/krylov":     "leading singular vectors",
		"internal/naming":     "the kind of a module by its name",
		"internal/parallel":   "blocks on workers",
	},
	"internal/bench": {"format/dtype": "elements of the base that is made"},
	"internal/checkpoint": {
		"format/dtype":         "elements of tensors",
		"internal/config":      "config.json",
		"internal/jsontext":    "indexes, by exact keys",
		"internal/fault":       "errors of input",
		"internal/fileio":      "inputs that are files",
		"internal/ggml":        "the types of blocks",
		"internal/gguf":        "bases of llama.cpp",
		"internal/lookup":      "tensors by name",
		"internal/naming":      "whether names are those of an adapter, and which weights are linear",
		"internal/parallel":    "many small reads at a time",
		"internal/pickle":      "bases in pickles of torch.save",
		"internal/quant":       "weights that are stored as codes and scales",
		"internal/safetensors": "the strict header check",
		"internal/shards":      "models in several files",
	},
	"internal/config": {
		"internal/fault":    "errors of input",
		"internal/naming":   "the tie that config.json speaks of",
		"internal/jsontext": "objects by exact keys, and edits of them",
	},
	"internal/naming": {
		"internal/architecture": "the names of image and video models",
		"internal/lookup":       "tensors by name",
	},
	"internal/resolve": {
		"internal/delta":  "the sizes of updates that are no thin products",
		"format":          "adapters",
		"format/dtype":    "dtypes of tensors",
		"internal/config": "config.json and its edits",
		"internal/fault":  "errors of input",
		"internal/peft":   "the methods of PEFT",
		"internal/naming": "which tensors names mean",
	},
	"internal/outline": {
		"internal/checkpoint": "the checkpoint that it describes",
		"internal/fault":      "a pipeline, which it cannot shape",
		"internal/resolve":    "the description",
	},
	"internal/audit": {
		"format":              "adapters of a change",
		"format/checkpoint":   "the checkpoints of merge and rank",
		"format/dtype":        "elements",
		"format/output":       "the output that compares",
		"internal/checkpoint": "their tensors",
		"internal/dense":      "products",
		"internal/fault":      "errors of input",
		"internal/naming":     "tensors of other names, ends of a tie",
		"internal/outline":    "the base as package resolve sees it",
		"internal/parallel":   "tensors on workers",
		"internal/rectangle":  "the updates of layers",
		"internal/resolve":    "the changes that adapters make",
		"internal/thin":       "updates",
		"merge":               "the exact merge",
		"rank":                "the ranks of changes",
	},
	"internal/rectangle": {
		"format/dtype":        "elements",
		"internal/checkpoint": "the tensors that it reads",
		"internal/resolve":    "the changes that it cuts",
		"internal/thin":       "ΔW",
	},
	"internal/report": {
		"internal/rectangle":  "the parts of a base that layers change",
		"internal/delta":      "the sizes of updates that are no thin products",
		"internal/card":       "licence and datasets of a model card",
		"internal/resolve":    "how merge applies an adapter",
		"format":              "adapters",
		"format/convert":      "metadata and hashes of the file that an adapter was read from",
		"format/dtype":        "elements",
		"format/checkpoint":   "the base's door to merge",
		"format/output":       "an output that drops everything",
		"internal/checkpoint": "checkpoints",
		"internal/dense":      "products with the base",
		"internal/fault":      "errors of input",
		"internal/jsontext":   "metadata that are JSON",
		"internal/krylov":     "the first singular vectors of W + ΔW, and products with W",
		"internal/naming":     "which matrices are linear layers",
		"internal/outline":    "the base as package resolve sees it",
		"internal/parallel":   "tensors of a base on workers",
		"internal/quant":      "how much of ΔW a quantisation leaves",
		"internal/thin":       "the singular vectors of ΔW",
		"internal/undo":       "undo records",
		"merge":               "whether an adapter fits a base, and what a merge would keep",
		"rank":                "spectra",
	},
	"internal/page": {
		"internal/audit":  "the report of an audit",
		"internal/fault":  "numbers of things",
		"internal/fileio": "sizes",
		"internal/report": "the report of inspect",
		"merge":           "the report of a merge",
		"rank":            "the reports of comparisons, extractions and combinations",
	},
	"internal/fileio": {
		"internal/fault":    "errors of input",
		"internal/jsontext": "journals",
	},
	"internal/ggml": {"format/dtype": "the numbers of blocks"},
	"internal/gguf": {
		"internal/fault": "errors of input",
		"internal/ggml":  "the types of tensors",
	},
	"internal/shards": {
		"internal/fault":    "errors of input",
		"internal/fileio":   "the directory of the shards",
		"internal/jsontext": "indexes, by exact keys",
	},
	"internal/jsontext": {"internal/fault": "texts in messages"},
	"internal/delta": {
		"format":         "layers of an adapter",
		"format/dtype":   "elements",
		"internal/dense": "transposes",
	},
	"internal/kernel": {"format/dtype": "elements"},
	"internal/krylov": {
		"internal/dense":    "factorizations of small matrices",
		"internal/parallel": "pieces of vectors on workers",
	},
	"internal/principal": {
		"internal/dense":  "factorizations of small matrices",
		"internal/krylov": "leading singular vectors",
	},
	"internal/npz": {
		"format/dtype":     "widths of dtypes",
		"internal/archive": "entries of zip archives",
		"internal/fault":   "errors of input",
	},
	"internal/archive": {"internal/fault": "errors of input"},
	"internal/pickle": {
		"format/dtype":     "widths of dtypes",
		"internal/archive": "entries of zip archives",
		"internal/fault":   "errors of input",
	},
	"internal/quant": {
		"internal/lookup":   "tensors by name",
		"format/dtype":      "elements",
		"internal/fault":    "errors of input",
		"internal/ggml":     "blocks of GGUF",
		"internal/jsontext": "states and configurations",
	},
	"internal/safetensors": {
		"format/dtype":      "widths of dtypes",
		"internal/fault":    "errors of input",
		"internal/jsontext": "headers",
		"internal/lookup":   "names that appear twice",
	},
	"internal/thin": {"internal/dense": "factorizations of small matrices"},
	"internal/undo": {
		"format":               "the container of a record",
		"format/dtype":         "elements",
		"internal/fault":       "errors of input",
		"internal/jsontext":    "descriptions",
		"internal/safetensors": "how long a header can be",
	},
	"internal/testkit": {"format/dtype": "elements of tensors to write"},
}

// never lists imports that no list may allow, directly or through other packages.
var never = []struct{ from, to, why string }{
	{"format", "merge", "the model of an adapter does not know its uses"},
	{"format", "rank", "the model of an adapter does not know its uses"},
	{"format/dtype", "format", "elements know no adapters"},
	{"format/output", "format", "an output knows files, not their content"},
	{"format/checkpoint", "format", "a checkpoint is no adapter"},
	{"format/convert", "merge", "dialects know adapters, not merges"},
	{"format/convert", "rank", "dialects know adapters, not ranks"},
	{"internal/undo", "internal/kernel", "a record knows residuals, not predictions"},
	{"merge", "rank", "the two do not know each other"},
	{"rank", "merge", "the two do not know each other"},
	{"merge", "format/convert", "behind the dialect's door nothing guesses again"},
	{"internal/checkpoint", "format", "a base is no adapter"},
	{"internal/kernel", "internal/parallel", "kernels know a tile"},
	{"internal/kernel", "internal/fileio", "kernels know a tile"},
	{"internal/naming", "internal/checkpoint", "names are compared, not files"},
	{"internal/resolve", "internal/checkpoint", "a change is found from names and shapes"},
}

// fences lists the packages that may import a foreign module, outside tests, with the reason.
var fences = map[string]struct {
	rooms []string
	why   string
}{
	"github.com/urfave/cli/v2":          {[]string{"cmd/loratool"}, "flags and help; the library neither prints nor exits"},
	"golang.org/x/term":                 {[]string{"cmd/loratool"}, "whether somebody looks"},
	"golang.org/x/sys":                  {[]string{"internal/fileio", "internal/kernel"}, "copy_file_range and free space; the processor's features"},
	"gonum.org/v1/gonum":                {[]string{"internal/dense"}, "factorizations of small dense matrices"},
	"aead.dev/minisign":                 {[]string{"cmd/loratool"}, "signatures, in one file"},
	"github.com/goccy/go-yaml":          {[]string{"internal/card"}, "the front matter of model cards"},
	"github.com/nlpodyssey/safetensors": {[]string{"format/safetensors"}, "writes adapter files behind our own check"},
	"github.com/klauspost/compress":     {[]string{"format"}, "zstd, in the file that codes blocks"},
}

// testFences lists further modules that tests may import, and where.
var testFences = map[string][]string{
	"github.com/nlpodyssey/safetensors": nil, // also as a reader other than our own
	"github.com/rogpeppe/go-internal":   {"cmd/loratool"},
	"gonum.org/v1/gonum":                {"rank", "internal/dense", "internal/krylov", "internal/principal", "internal/report", "internal/thin"}, // full decompositions as the truth
}

// file is a source file of the module.
type file struct {
	room   string // the directory from the module's root, with slashes
	path   string
	isTest bool
	syntax *ast.File
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// source parses every Go file of the module.
func source(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	fset := token.NewFileSet()
	var files []file
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_")):
			return fs.SkipDir
		case d.IsDir() && path != root && isModule(path): // the kernel generator is a module of its own
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		syntax, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		room, _, _ := cutLast(rel, "/")
		files = append(files, file{room: room, path: rel, isTest: strings.HasSuffix(rel, "_test.go"), syntax: syntax})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("%d Go files were found, want the whole module", len(files))
	}
	return fset, files
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// imports calls f for every import of every file that keep selects.
func imports(t *testing.T, keep func(file) bool, f func(file, string)) {
	t.Helper()
	_, files := source(t)
	for _, file := range files {
		if !keep(file) {
			continue
		}
		for _, spec := range file.syntax.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			f(file, path)
		}
	}
}

func isProduct(f file) bool { return !f.isTest }
func isTest(f file) bool    { return f.isTest }

// isOurs returns the package of this module that an import path names.
func isOurs(path string) (room string, ok bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

// isForeign reports whether an import path belongs to neither this module nor the standard library.
func isForeign(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	_, ours := isOurs(path)
	return strings.Contains(first, ".") && !ours
}

func moduleOf[V any](modules map[string]V, path string) (string, bool) {
	for m := range modules {
		if path == m || strings.HasPrefix(path, m+"/") {
			return m, true
		}
	}
	return "", false
}

func TestImportsFollowTheArrows(t *testing.T) {
	used := make(map[string]bool)
	imports(t, isProduct, func(f file, path string) {
		to, ours := isOurs(path)
		if !ours {
			return
		}
		if to == "internal/testkit" {
			t.Errorf("%s imports %s, which is for tests", f.path, to)
		}
		if _, ok := arrows[f.room][to]; !ok {
			t.Errorf("%s: the arrow from %s to %s is not on the list of internal/arch", f.path, f.room, to)
		}
		used[f.room+" "+to] = true
	})
	for from, list := range arrows {
		for to, why := range list {
			if !used[from+" "+to] {
				t.Errorf("the list has an arrow from %s to %s that nothing uses", from, to)
			}
			if why == "" {
				t.Errorf("the arrow from %s to %s has no reason", from, to)
			}
		}
	}
}

// usesSystem lists the packages of the library that import os, and why.
var usesSystem = map[string]string{
	"format":           "the type of the file that it opens",
	"internal/fileio":  "everything else asks it for files",
	"internal/kernel":  "an environment variable chooses the kernel",
	"internal/bench":   "a command",
	"internal/testkit": "tests prepare files of their own",
}

// TestLibraryKnowsNoFileSystem: the library reads and writes through few packages.
func TestLibraryKnowsNoFileSystem(t *testing.T) {
	imports(t, isProduct, func(f file, path string) {
		isLibrary := slices.Contains(library, f.room) || strings.HasPrefix(f.room, "internal/")
		if path == "os" && isLibrary && usesSystem[f.room] == "" {
			t.Errorf("%s imports os; write through format/output, and read through internal/fileio", f.path)
		}
	})
}

func TestForbiddenArrowsAreNotOnTheListInAnyNumberOfSteps(t *testing.T) {
	for _, n := range never {
		reached := map[string]bool{}
		var walk func(string)
		walk = func(room string) {
			for to := range arrows[room] {
				if !reached[to] {
					reached[to] = true
					walk(to)
				}
			}
		}
		walk(n.from)
		if reached[n.to] {
			t.Errorf("%s reaches %s, which is forbidden: %s", n.from, n.to, n.why)
		}
	}
	for from, list := range arrows {
		if to := "cmd/loratool"; list[to] != "" {
			t.Errorf("%s imports %s: nothing imports a command", from, to)
		}
	}
}

func TestForeignModulesStayBehindTheirFences(t *testing.T) {
	imports(t, isProduct, func(f file, path string) {
		if path == "C" {
			t.Errorf("%s uses cgo", f.path)
		}
		if !isForeign(path) {
			return
		}
		m, ok := moduleOf(fences, path)
		switch {
		case !ok:
			t.Errorf("%s imports %s, which is not on the list of internal/arch", f.path, path)
		case !slices.Contains(fences[m].rooms, f.room):
			t.Errorf("%s imports %s, which belongs in %q: %s", f.path, path, fences[m].rooms, fences[m].why)
		}
	})
	imports(t, isTest, func(f file, path string) {
		if !isForeign(path) {
			return
		}
		if m, ok := moduleOf(testFences, path); ok && (testFences[m] == nil || slices.Contains(testFences[m], f.room)) {
			return
		}
		if m, ok := moduleOf(fences, path); ok && slices.Contains(fences[m].rooms, f.room) {
			return
		}
		t.Errorf("%s imports %s, which is not on the list for tests of internal/arch", f.path, path)
	})
}

// plainFlags lists the names of urfave/cli that the command's files may use, to declare flags and
// read their values. Workarounds belong in urfave.go.
var plainFlags = []string{
	"BoolFlag", "Command", "Context", "DurationFlag", "Flag", "Float64Flag", "Int64Flag", "IntFlag",
	"DocGenerationFlag", // of which help.go reads the texts
	"StringFlag", "StringSlice", "StringSliceFlag",
}

func TestOneFileGoesAroundTheFlagLibrary(t *testing.T) {
	fset, files := source(t)
	around := 0
	for _, f := range files {
		if f.isTest || f.room != "cmd/loratool" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok || pkg.Name != "cli" || slices.Contains(plainFlags, sel.Sel.Name) {
				return true
			}
			around++
			if f.path != "cmd/loratool/urfave.go" {
				t.Errorf("%s uses cli.%s, which belongs in urfave.go", fset.Position(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
	if around == 0 {
		t.Error("urfave.go uses nothing of the library: the test looks for the wrong thing")
	}
}

// TestGoroutinesStartInOneRoom looks for go statements and for calls of a method Go, such as
// sync.WaitGroup's.
func TestGoroutinesStartInOneRoom(t *testing.T) {
	fset, files := source(t)
	starts := make(map[string]int)
	for _, f := range files {
		if f.isTest {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			var start string
			switch n := n.(type) {
			case *ast.GoStmt:
				start = "a go statement"
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Go" {
					start = "a call of Go"
				}
			}
			if start == "" {
				return true
			}
			starts[f.room]++
			if f.room != "internal/parallel" {
				t.Errorf("%s has %s; goroutines start in internal/parallel", fset.Position(n.Pos()), start)
			}
			return true
		})
	}
	if starts["internal/parallel"] == 0 {
		t.Errorf("no goroutine starts anywhere (%v): the test looks for the wrong thing", fmt.Sprint(slices.Collect(maps.Keys(starts))))
	}
}

// TestJSONIsReadInOneRoom: encoding/json may write, but it reads too leniently.
func TestJSONIsReadInOneRoom(t *testing.T) {
	fset, files := source(t)
	for _, f := range files {
		if f.isTest || f.room == "internal/jsontext" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if from, ok := sel.X.(*ast.Ident); ok && from.Name == "json" && slices.Contains([]string{"Unmarshal", "NewDecoder", "Valid"}, sel.Sel.Name) {
				t.Errorf("%s reads JSON with encoding/json; internal/jsontext does that", fset.Position(n.Pos()))
			}
			return true
		})
	}
}
