package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestOutputsOnTerminals holds the outputs that people see most often, on terminals of 60, 80 and
// 120 columns. The commands run one after the other, once for each width.
func TestOutputsOnTerminals(t *testing.T) {
	outputs := []struct{ name, line string }{
		{"merge", "loratool merge testdata/demo/base testdata/demo/adapter-r8 -o merged --undo"},
		{"merge-dry-run", "loratool merge testdata/demo/base testdata/demo/adapter-r8 -o other --dry-run"},
		{"merge-head", "loratool merge testdata/peft/bases/bert testdata/peft/merge/classifier/adapter -o bert -v"},
		{"unmerge", "loratool unmerge merged testdata/demo/adapter-r8 -o restored"},
		{"swap", "loratool swap merged --remove testdata/demo/adapter-r8 --add testdata/demo/adapter-r8 -o swapped"},
		{"extract", "loratool extract testdata/demo/base merged -o extracted.lora --rank 4"},
		{"inspect", "loratool inspect testdata/demo/adapter-r8"},
		{"inspect-spectrum", "loratool inspect testdata/demo/adapter-r8 --spectrum"},
		{"inspect-on-base", "loratool inspect testdata/demo/adapter-r8 --base testdata/demo/base"},
		{"inspect-refused", "loratool inspect testdata/peft/refuse/infinite-factor/adapter --values"},
		{"inspect-beside", "loratool inspect testdata/corpus/huggingface__peft__26"},
		{"inspect-hashes", "loratool inspect testdata/hashes/by-name.safetensors --hashes"},
		{"inspect-base", "loratool inspect testdata/demo/base --rank 8"},
		{"inspect-undo", "loratool inspect merged.undo"},
		{"convert", "loratool convert testdata/demo/adapter-r8 -o demo.lora"},
		{"verify", "loratool verify demo.lora"},
	}
	goldens, err := filepath.Abs("testdata/output")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]*bytes.Buffer)
	for _, columns := range []int{60, 80, 120} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			inClone(t)
			for _, o := range outputs {
				var out, errs bytes.Buffer
				term := &terminal{out: &results{w: &out}, err: &errs, columns: columns, seconds: 2}
				if code := runOn(context.Background(), strings.Fields(o.line), term); code != exitDone {
					t.Fatalf("%s exits with %d: %s", o.line, code, &errs)
				}
				if got[o.name] == nil {
					got[o.name] = bytes.NewBufferString("$ " + o.line + "\n")
				}
				fmt.Fprintf(got[o.name], "\n-- %d columns --\n%s", columns, placeless(errs.String()+out.String()))
			}
		})
	}
	for _, o := range outputs {
		path := filepath.Join(goldens, o.name+".txt")
		if *update {
			if err := os.WriteFile(path, got[o.name].Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(want, got[o.name].Bytes()) {
			t.Errorf("%s differs from %s (%v; -update writes it):\n%s", o.line, path, err, got[o.name])
		}
	}
}

// placeless is an output without the figures that differ from machine to machine: memory and free
// space. The lengths of the figures move the breaks of a narrow terminal, so that their line is
// joined.
func placeless(text string) string {
	text = regexp.MustCompile(`,\s+[0-9.]+\s+[kMGT]?B\s+free`).ReplaceAllString(text, ", N GB free")
	return regexp.MustCompile(`;\s+about\s+[0-9.]+\s+[kMGT]?B\s+of\s+memory`).ReplaceAllString(text, "; about N MB of memory")
}
