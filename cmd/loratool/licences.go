package main

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
)

// licenceFiles are the licences and notices of every module that is linked in, on any system, in
// directories with the names of the modules; those of Go itself are in std.
// go test ./cmd/loratool -run Licence -update writes them.
//
//go:embed licences
var licenceFiles embed.FS

// licence is one file of a module.
type licence struct {
	Module string `json:"module"`
	File   string `json:"file"`
	Text   string `json:"text"`
}

func readLicences() (all []licence, err error) {
	texts, err := fs.Sub(licenceFiles, "licences")
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(texts, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(texts, name)
		all = append(all, licence{Module: path.Dir(name), File: path.Base(name), Text: string(text)})
		return err
	})
	return all, err
}

func showLicences(t *terminal) error {
	all, err := readLicences()
	if err != nil {
		return err
	}
	if t.json {
		return t.document("version", map[string]any{"licences": all})
	}
	for _, l := range all {
		name := l.Module
		if name == "std" {
			name = "the standard library of Go"
		}
		t.out.WriteString(fmt.Sprintf("=== %s: %s\n\n%s\n", name, l.File, l.Text))
	}
	return nil
}
