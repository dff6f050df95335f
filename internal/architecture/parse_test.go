package architecture

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestEmbeddedTables(t *testing.T) {
	names, err := fs.Glob(files, "tables/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("tables/*.txt: %q, %v", names, err)
	}
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tab, err := parse(string(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := strings.TrimSuffix(path.Base(name), ".txt"); tab.Name != want {
			t.Errorf("%s has the name %q, want %q", name, tab.Name, want)
		}
		if !slices.Contains([]string{"unet", "transformer", "text_encoder"}, tab.Component) {
			t.Errorf("%s has the component %q", name, tab.Component)
		}
	}
	if len(Tables()) != len(names) {
		t.Errorf("Tables() has %d tables, want %d", len(Tables()), len(names))
	}
}

func TestSectionsGoBelowTheirPrefix(t *testing.T) {
	tab, err := parse("name x\ncomponent unet\n" +
		"a.# = b.# {one}\n" +
		"c = c {one}\n" +
		"d {two}\n" +
		"# a comment\n" +
		"[one]\n e.# = f.# {two}\n" +
		"[two]\n g = h + i\n #.j = #.k\n")
	if err != nil {
		t.Fatal(err)
	}
	for module, want := range map[string]string{
		"a.1.e.2.g":   "b.1.f.2.h + b.1.f.2.i",
		"a.1.e.2.3.j": "b.1.f.2.3.k",
		"c.e.4.g":     "c.f.4.h + c.f.4.i",
		"d.5.j":       "d.5.k",
		"b.1.f.2.i":   "b.1.f.2.i",
	} {
		if parts, ok := tab.Parts(module); show(parts) != want || !ok {
			t.Errorf("Parts(%q) = %q, %v, want %q", module, show(parts), ok, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"a = b {c}":                      "names no section",
		"a {b}\n[b]\nc {b}":              "or itself",
		"a = b {c\n[c]\nd":               "has no }",
		"a\n[]":                          "not the title of a new section",
		"a\n[b\nc":                       "not the title of a new section",
		"a {b}\n[b]\nc\n[b]\nd":          "not the title of a new section",
		"a = b\na = c":                   "stands on the left twice",
		"a = b:n\na = b[1/2]:n + b[2/2]": "stands on the left twice",
		"a = b\na = b[1/2]:n + c[2/2]:n": "not each there once",
		"a = b\na = b:n\na = b:n":        "stands on the left twice",
		"a = b\nc = b":                   "not each there once",
		"a = b[1/2]":                     "not each there once",
		"a = b[1/2] + b[1/2]":            "not each there once",
		"a = b[1/2] + b[2/3]":            "not each there once",
		"a = b[0/2] + b[1/2]":            "not a share",
		"a = b[3/2]":                     "not a share",
		"a = b[1/2 + b[2/2]":             "not a share",
		"a = b[x/2]":                     "not a share",
		"a.# = b":                        "count of numbers",
		"a = b + c.#":                    "count of numbers",
		"a = b\nb = a":                   "means one module natively and another in diffusers",
		"a = b + c\nb = d":               "means one module natively and another in diffusers",
		"a = b c":                        "not the name of a module",
		"a = ":                           "not the name of a module",
		"a. = b":                         "not the name of a module",
		"a..b":                           "not the name of a module",
		"a = b = c":                      "not the name of a module",
		"name y\ncomponent\na = b":       "needs the lines",
	} {
		_, err := parse("name x\ncomponent unet\n" + text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parse(%q) = %v, want an error with %q", text, err, want)
		}
	}
}
