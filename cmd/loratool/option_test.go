package main

import (
	"bytes"
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

func TestFlagsFor(t *testing.T) {
	for text, want := range map[string]string{
		"to merge into this one all the same, set Options.AnyBase": "to merge into this one all the same, use --any-base",
		"set Options.Tied=fold, if that is meant":                  "use --tied fold, if that is meant",
		"Options.Tied=untie makes the head a tensor of its own":    "--tied untie makes the head a tensor of its own",
		"set Options.Without=a.bin Options.Without=b.bin":          "use --without a.bin --without b.bin",
		"set Adapter.Weight=NaN: the record knows it":              "leave --weight out: the record knows it",
		"Checkpoint.History shows it":                              "loratool inspect shows it",
		"MyOptions.AnyBase and Options.NoSuch":                     "MyOptions.AnyBase and Options.NoSuch",
	} {
		if got := flagsFor(text); got != want {
			t.Errorf("flagsFor(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestEveryOptionOfATextHasAFlag looks through the string literals of the library.
func TestEveryOptionOfATextHasAFlag(t *testing.T) {
	used := make(map[string]bool)
	for _, room := range []string{"format", "merge", "rank", "internal"} {
		err := filepath.WalkDir(filepath.Join("../..", room), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(syntax, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range optionWord.FindAllStringSubmatch(text, -1) {
					if used[m[2]] = true; flagOf[m[2]] == "" {
						t.Errorf("%s names %s, which has no flag: %q", path, m[2], text)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for option := range flagOf {
		if !used[option] {
			t.Errorf("no text of the library names %s", option)
		}
	}
}

// TestOptionsOfTheTableExist: the library has the fields, and a command has the flags.
func TestOptionsOfTheTableExist(t *testing.T) {
	options := map[string][]any{
		"Options": {merge.Options{}, convert.Options{}}, "ExtractOptions": {rank.ExtractOptions{}}, "LoRAOptions": {rank.LoRAOptions{}},
		"CombineOptions": {rank.CombineOptions{}}, "CompareOptions": {rank.CompareOptions{}},
		"ReaderOptions": {format.ReaderOptions{}}, "Removal": {merge.Removal{}}, "Adapter": {merge.Adapter{}},
	}
	var help bytes.Buffer
	for _, command := range newApp(&terminal{}).commandNames() {
		if code := run(context.Background(), []string{"loratool", "help", command, "--all"}, &help, &help); code != exitDone {
			t.Fatalf("%s --help = %d", command, code)
		}
	}
	for option, flag := range flagOf {
		room, name, _ := strings.Cut(strings.TrimSuffix(option, "=NaN"), ".")
		if strings.HasPrefix(flag, "--") && !strings.Contains(help.String(), flag) {
			t.Errorf("no command has the flag %s of %s", flag, option)
		}
		values, isOption := options[room]
		has := !isOption // a function
		for _, v := range values {
			_, ok := reflect.TypeOf(v).FieldByName(name)
			has = has || ok
		}
		if !has {
			t.Errorf("the library has no %s", option)
		}
	}
}
