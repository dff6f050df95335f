package architecture

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// published is the list of the modules in a published adapter.
type published struct {
	tables []string // the names of the tables that know them; "-" if there is none
	names  []string
}

// readPublished reads a file of testdata/architecture/names.
func readPublished(t *testing.T, file string) (p published) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "tables":
			p.tables = strings.Fields(rest)
		case name == "names":
			want = number(t, rest)
		case rest == "":
			p.names = append(p.names, name)
		default:
			for span := range strings.SplitSeq(rest, ",") {
				first, last, ok := strings.Cut(span, "-")
				if !ok {
					last = first
				}
				for n := number(t, first); n <= number(t, last); n++ {
					p.names = append(p.names, fill(name, []string{strconv.Itoa(n)}))
				}
			}
		}
	}
	if len(p.names) != want || want == 0 {
		t.Errorf("%s: %d names, want %d", file, len(p.names), want)
	}
	return p
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// modulesOf returns the modules that a name in an adapter can mean by some tables.
func modulesOf(name string, tables []*Table) []string {
	flat, rest, _ := strings.Cut(name, "_")
	isFlat := flat == "lora" && !strings.Contains(name, ".")
	isText := false
	if isFlat {
		var component string
		component, rest, _ = strings.Cut(rest, "_")
		isText = strings.HasPrefix(component, "te")
	} else {
		rest = name
		for _, prefix := range []string{"transformer.", "diffusion_model.", "base_model.model."} {
			rest = strings.TrimPrefix(rest, prefix)
		}
	}
	var modules []string
	for _, t := range tables {
		switch _, isKnown := t.Parts(rest); {
		case isText != (t.Component == "text_encoder"):
		case isFlat:
			modules = append(modules, t.Unflatten(rest)...)
		case isKnown:
			modules = append(modules, rest)
		}
	}
	return modules
}

// TestNamesOfPublishedAdapters: the tables know each name in exactly one way.
func TestNamesOfPublishedAdapters(t *testing.T) {
	list, err := filepath.Glob("../../testdata/architecture/names/*.txt")
	if err != nil || len(list) == 0 {
		t.Fatalf("names/*.txt: %q, %v", list, err)
	}
	for _, file := range list {
		p := readPublished(t, file)
		if slices.Equal(p.tables, []string{"-"}) {
			noTableKnows(t, file, p.names)
			continue
		}
		var tables []*Table
		for _, name := range p.tables {
			tables = append(tables, table(t, name))
		}
		for _, name := range p.names {
			if got := modulesOf(name, tables); len(got) != 1 {
				t.Errorf("%s: %s means %q, want one module", filepath.Base(file), name, got)
			}
		}
	}
}

// noTableKnows checks that no table claims the names of another architecture.
func noTableKnows(t *testing.T, file string, names []string) {
	for _, tab := range Tables() {
		known := 0
		for _, name := range names {
			known += len(modulesOf(name, []*Table{tab}))
		}
		if known == len(names) {
			t.Errorf("%s: table %s knows all names, want none", filepath.Base(file), tab.Name)
		}
	}
}
