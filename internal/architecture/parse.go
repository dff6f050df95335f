package architecture

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed tables/*.txt rest/*.txt
var files embed.FS

// tables parses the embedded files. A test parses them first, so a program cannot meet the panic.
var tables = sync.OnceValue(func() []*Table {
	entries, err := files.ReadDir("tables")
	if err != nil {
		panic(err)
	}
	var all []*Table
	for _, e := range entries {
		var texts [2]string
		for i, folder := range []string{"tables", "rest"} {
			text, err := files.ReadFile(path.Join(folder, e.Name()))
			if err != nil {
				panic(err)
			}
			texts[i] = string(text)
		}
		t, err := parse(texts[0])
		if err == nil {
			err = t.parseRest(texts[0], texts[1])
		}
		if err != nil {
			panic(fmt.Sprintf("architecture: %s: %v", e.Name(), err))
		}
		all = append(all, t)
	}
	return all
})

// parse reads a table. tables/README.md describes the language.
func parse(text string) (*Table, error) {
	t := &Table{names: new(node), flat: new(node)}
	sections, err := t.split(text)
	if err != nil {
		return nil, err
	}
	if t.Name == "" || t.Component == "" {
		return nil, fmt.Errorf("a table needs the lines \"name …\" and \"component …\"")
	}
	b := builder{Table: t, sections: sections, entries: make(map[string]*entry)}
	if err := b.section("", "", ""); err != nil {
		return nil, err
	}
	return t, b.finish()
}

// parseRest reads the tensors that the table leaves out. Their lines go below the same modules as
// the lines of the table's section of the same name.
func (t *Table) parseRest(table, text string) error {
	t.rest = &Table{names: new(node), flat: new(node)}
	sections, err := t.split(table)
	if err != nil {
		return err
	}
	more, err := t.split(text)
	if err != nil {
		return err
	}
	for name, lines := range sections {
		leads := slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, "{") })
		sections[name] = append(leads, more[name]...)
		delete(more, name)
	}
	for name := range more {
		return fmt.Errorf("the table has no section %q", name)
	}
	b := builder{Table: t.rest, sections: sections, entries: make(map[string]*entry)}
	if err := b.section("", "", ""); err != nil {
		return err
	}
	return b.finish()
}

// split reads the head of a table and returns the lines of its sections. The lines before the first
// section have the name "".
func (t *Table) split(text string) (map[string][]string, error) {
	sections := make(map[string][]string)
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line == "#" || strings.HasPrefix(line, "# ") {
			continue
		}
		if title, ok := strings.CutPrefix(line, "["); ok {
			name = strings.TrimSuffix(title, "]")
			if _, twice := sections[name]; twice || name == "" || name == title {
				return nil, fmt.Errorf("%q is not the title of a new section", line)
			}
			sections[name] = nil
			continue
		}
		word, value, _ := strings.Cut(line, " ")
		switch {
		case word == "name" && name == "":
			t.Name = value
		case word == "component" && name == "":
			t.Component = value
		default:
			sections[name] = append(sections[name], line)
		}
	}
	return sections, nil
}

// builder collects the names of a table while it is read.
type builder struct {
	*Table
	sections map[string][]string
	entries  map[string]*entry
	deep     int // sections within sections
}

// section adds the lines of a section below a native and a diffusers module.
func (b *builder) section(name, native, diffusers string) error {
	lines, ok := b.sections[name]
	if b.deep++; !ok || b.deep > 4 {
		return fmt.Errorf("{%s} names no section, or itself", name)
	}
	defer func() { b.deep-- }()
	for _, line := range lines {
		if err := b.line(line, native, diffusers); err != nil {
			return fmt.Errorf("line %q: %w", line, err)
		}
	}
	return nil
}

// line adds one line. native and diffusers are the modules above, "" at the top.
func (b *builder) line(line, native, diffusers string) error {
	rest, section, hasSection := strings.Cut(line, "{")
	left, right, hasRight := strings.Cut(rest, "=")
	left = strings.TrimSpace(left)
	if !hasRight {
		right = left
	}
	if hasSection {
		section, ok := strings.CutSuffix(section, "}")
		if !ok {
			return fmt.Errorf("the section's name has no }")
		}
		return b.section(section, join(native, left), join(diffusers, strings.TrimSpace(right)))
	}
	r := &row{native: join(native, left)}
	for s := range strings.SplitSeq(right, "+") {
		p, err := parsePart(strings.TrimSpace(s))
		if err != nil {
			return err
		}
		p.Module = join(diffusers, p.Module)
		r.parts = append(r.parts, p)
	}
	return b.add(r)
}

// parsePart reads a part: a module, then perhaps [share/shares], then perhaps ":n".
func parsePart(s string) (Part, error) {
	p := Part{Share: 1, Shares: 1}
	s, p.Square = strings.CutSuffix(s, ":n")
	name, share, cut := strings.Cut(s, "[")
	if p.Module = name; !cut {
		return p, checkName(name)
	}
	share, closed := strings.CutSuffix(share, "]")
	i, n, _ := strings.Cut(share, "/")
	var err1, err2 error
	p.Share, err1 = strconv.Atoi(i)
	p.Shares, err2 = strconv.Atoi(n)
	if !closed || err1 != nil || err2 != nil || p.Share < 1 || p.Share > p.Shares {
		return p, fmt.Errorf("%q is not a share, such as [1/2]", "["+share)
	}
	return p, checkName(name)
}

// checkName refuses names that are no dotted names.
func checkName(name string) error {
	if strings.ContainsAny(name, " []{}:=+") || slices.Contains(strings.Split(name, "."), "") {
		return fmt.Errorf("%q is not the name of a module", name)
	}
	return nil
}

// join puts a name below a module.
func join(module, name string) string {
	if module == "" || name == "" {
		return module + name
	}
	return module + "." + name
}

// add adds a row to the entries of its names.
func (b *builder) add(r *row) error {
	isSquare := r.isSquare()
	e := b.entry(r.native, isSquare)
	if e.native != nil {
		return fmt.Errorf("%s stands on the left twice", r.native)
	}
	e.native = r
	for i, p := range r.parts {
		if strings.Count(p.Module, "#") != strings.Count(r.native, "#") {
			return fmt.Errorf("%s and %s differ in their count of numbers", r.native, p.Module)
		}
		e := b.entry(p.Module, isSquare)
		e.places = append(e.places, place{r, i})
	}
	return checkName(r.native)
}

// entry returns the entry of a name, or its square one, and makes them first if they are new.
func (b *builder) entry(name string, isSquare bool) *entry {
	e := b.entries[name]
	if isSquare && e != nil && e.square == nil {
		e.square = &entry{name: name}
	}
	if isSquare && e != nil {
		return e.square
	}
	if e == nil {
		e = &entry{name: name}
		b.entries[name] = e
		b.names.insert(strings.Split(name, "."), e)
		b.flat.insert(strings.Split(Flatten(name), "_"), e)
	}
	return e
}

// insert adds an entry to the tree.
func (n *node) insert(segments []string, e *entry) {
	for _, s := range segments {
		if n.next == nil {
			n.next = make(map[string]*node)
		}
		if n.next[s] == nil {
			n.next[s] = new(node)
		}
		n = n.next[s]
	}
	n.entries = append(n.entries, e)
}

// finish checks all entries.
func (b *builder) finish() error {
	for _, e := range b.entries {
		for ; e != nil; e = e.square {
			if err := e.finish(); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish checks that a diffusers module stands in the table exactly once, whole or in all its
// shares, and that a name of both namespaces means the same in both.
func (e *entry) finish() error {
	slices.SortFunc(e.places, func(x, y place) int { return x.part().Share - y.part().Share })
	for i, p := range e.places {
		if part := p.part(); part.Share != i+1 || part.Shares != len(e.places) {
			return fmt.Errorf("the shares of %s are not each there once", e.name)
		}
	}
	if e.native != nil && e.places != nil && (len(e.places) > 1 || e.places[0].in != e.native) {
		return fmt.Errorf("%s means one module natively and another in diffusers", e.name)
	}
	return nil
}
