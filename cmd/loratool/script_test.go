package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"loratool": becomeUser(main)})
}

// TestScripts runs testdata/script. $DEMO, $PEFT and the like are the fixtures, which no script may
// change.
func TestScripts(t *testing.T) {
	fixtures := testkit.Tree(t, "../../testdata")
	t.Cleanup(func() {
		if after := testkit.Tree(t, "../../testdata"); !maps.Equal(after, fixtures) {
			t.Error("a script has changed testdata")
		}
	})
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for name, path := range map[string]string{"DEMO": "../../testdata/demo", "PEFT": "../../testdata/peft", "PICKLE": "../../testdata/pickle", "GGUF": "../../testdata/gguf", "MLX": "../../testdata/mlx", "QUANT": "../../testdata/quant",
				"AUDIT": "../../testdata/audit", "DIFFUSION": "../../testdata/diffusion", "HASHES": "../../testdata/hashes", "WHOLE": "../../testdata/whole",
				"SIGNATURE": "../../testdata/signature", "VECTORS": "../../testdata/vectors"} {
				abs, err := filepath.Abs(path)
				if err != nil {
					return err
				}
				env.Setenv(name, abs)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": scriptExit, "json": scriptJSON, "list": scriptList, "copydir": scriptCopyDir, "samedir": scriptSameDir,
			"tensors": scriptTensors, "flip": scriptFlip, "plain": scriptPlain,
			"hardlink": scriptHardLink,
		},
	})
}

// exit CODE PROGRAM ARGS... runs a program and wants its exit code.
func scriptExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("the exit code of %q is %d, want %d", args[1:], got, want)
	}
}

// json FILE PATH [VALUE] wants FILE, or stdout, to be one JSON document that has VALUE at PATH:
// names and indices between dots, count for the length of a list or an object. Without VALUE
// something must be there; ! json FILE PATH wants nothing.
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || len(args) > 3 || neg && len(args) > 2 {
		ts.Fatalf("usage: [!] json FILE PATH [VALUE]")
	}
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.UseNumber()
	var doc any
	ts.Check(dec.Decode(&doc))
	if err := dec.Decode(new(any)); err != io.EOF {
		ts.Fatalf("%s holds more than one JSON document: %v", args[0], err)
	}
	got, ok := lookup(doc, args[1])
	switch {
	case neg && ok:
		ts.Fatalf("%s is %s, want nothing", args[1], got)
	case neg:
	case !ok:
		ts.Fatalf("%s is not there", args[1])
	case len(args) == 3 && got != args[2]:
		ts.Fatalf("%s is %s, want %s", args[1], got, args[2])
	}
}

// lookup returns the text of a string, and anything else as JSON.
func lookup(doc any, path string) (string, bool) {
	for _, step := range strings.Split(path, ".") {
		switch v := doc.(type) {
		case map[string]any:
			if step == "count" {
				return strconv.Itoa(len(v)), true
			}
			next, ok := v[step]
			if !ok {
				return "", false
			}
			doc = next
		case []any:
			if step == "count" {
				return strconv.Itoa(len(v)), true
			}
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v) {
				return "", false
			}
			doc = v[i]
		default:
			return "", false
		}
	}
	if s, ok := doc.(string); ok {
		return s, true
	}
	text, err := json.Marshal(doc)
	return string(text), err == nil
}

// list DIR NAME... wants the directory to hold exactly these names, hidden ones too.
func scriptList(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: list DIR NAME...")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	got := []string{}
	for _, e := range entries {
		if e.Name() != ".tmp" { // $TMPDIR
			got = append(got, e.Name())
		}
	}
	if want := slices.Sorted(slices.Values(args[1:])); !slices.Equal(got, want) {
		ts.Fatalf("%s holds %q, want %q", args[0], got, want)
	}
}

// copydir SRC DST copies a directory.
func scriptCopyDir(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: copydir SRC DST")
	}
	ts.Check(os.CopyFS(ts.MkAbs(args[1]), os.DirFS(ts.MkAbs(args[0]))))
}

// hardlink OLD NEW gives a file a second name.
func scriptHardLink(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hardlink OLD NEW")
	}
	ts.Check(os.Link(ts.MkAbs(args[0]), ts.MkAbs(args[1])))
}

// samedir A B wants two directories to hold the same names and contents.
func scriptSameDir(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] samedir A B")
	}
	a, b := fmt.Sprint(treeOf(ts, args[0])), fmt.Sprint(treeOf(ts, args[1]))
	if (a == b) == neg {
		ts.Fatalf("%s and %s: the same is %v, want %v\n%s\n%s", args[0], args[1], a == b, !neg, a, b)
	}
}

func treeOf(ts *testscript.TestScript, dir string) map[string][]byte {
	tree := make(map[string][]byte)
	root := ts.MkAbs(dir)
	ts.Check(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		tree[strings.TrimPrefix(path, root)] = text
		return err
	}))
	return tree
}

// tensors FILE NAME=DTYPE:SHAPE:VALUE... writes a safetensors file; SHAPE is like 4x4, and every
// element is VALUE. Escapes of Go stand for what a script cannot hold.
func scriptTensors(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: tensors FILE NAME=DTYPE:SHAPE:VALUE...")
	}
	var tensors []testkit.Tensor
	for _, arg := range args[1:] {
		name, rest, _ := strings.Cut(arg, "=")
		parts := strings.Split(rest, ":")
		if len(parts) != 3 {
			ts.Fatalf("%q is not NAME=DTYPE:SHAPE:VALUE", arg)
		}
		name, err := strconv.Unquote(`"` + name + `"`)
		ts.Check(err)
		d, ok := dtype.Parse(parts[0])
		if !ok {
			ts.Fatalf("%q is no dtype", parts[0])
		}
		var shape []uint64
		n := 1
		for _, dim := range strings.Split(parts[1], "x") {
			k, err := strconv.Atoi(dim)
			ts.Check(err)
			shape, n = append(shape, uint64(k)), n*k
		}
		x, err := strconv.ParseFloat(parts[2], 64)
		ts.Check(err)
		tensors = append(tensors, testkit.Values(name, d, shape, slices.Repeat([]float64{x}, n)...))
	}
	path := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o777))
	ts.Check(os.WriteFile(path, testkit.Encode(map[string]string{"format": "pt"}, tensors...), 0o666))
}

// plain stdout|stderr wants no byte that drives a terminal, and every line of stderr to begin as
// the program's lines do.
func scriptPlain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: plain stdout|stderr")
	}
	text := ts.ReadFile(args[0])
	if i := bytes.IndexFunc([]byte(text), func(r rune) bool {
		return r < ' ' && r != '\n' || 0x7f <= r && r < 0xa0 || r == '\u202e' || r == '\u2028'
	}); i >= 0 {
		ts.Fatalf("%s has a control character at %d: %q", args[0], i, text)
	}
	for line := range strings.Lines(text) {
		if args[0] == "stderr" && !strings.HasPrefix(line, "loratool: error: ") && !strings.HasPrefix(line, "loratool: warning: ") && !strings.HasPrefix(line, "loratool: hint: ") {
			ts.Fatalf("stderr has the line %q, want it to begin with loratool: error, warning or hint", line)
		}
	}
}

// flip FILE OFFSET changes one bit of a file.
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	path := ts.MkAbs(args[0])
	content, err := os.ReadFile(path)
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	content[at] ^= 1
	ts.Check(os.WriteFile(path, content, 0o666))
}
