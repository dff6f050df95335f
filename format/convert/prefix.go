package convert

import (
	"errors"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
)

// Prefix replaces the beginning of the names of modules: the segments From of a path, separated by
// dots, by the segments To. An empty From adds To in front of every name, and an empty To removes
// From.
type Prefix struct{ From, To string }

// check refuses a prefix that is no path.
func (p Prefix) check() error {
	for _, path := range []string{p.From, p.To} {
		if path != "" && (checkName(path) != nil || slices.Contains(strings.Split(path, "."), "")) {
			return fault.New(fault.Mismatch, "the prefix %q of Options.Prefix is no path of a module", path).
				WithHint("such as model.language_model")
		}
	}
	if p.From == p.To {
		return fault.New(fault.Mismatch, "the prefix %q of Options.Prefix replaces itself", p.From)
	}
	return nil
}

// apply replaces the beginning of a path; ok is false if the path does not begin with From, or if
// nothing would be left.
func (p Prefix) apply(path string) (result string, ok bool) {
	switch {
	case p.From == "":
		return p.To + "." + path, true
	case path == p.From:
		return p.To, p.To != ""
	}
	rest, ok := strings.CutPrefix(path, p.From+".")
	if p.To == "" {
		return rest, ok
	}
	return p.To + "." + rest, ok
}

// replacer replaces prefixes in the names of an adapter.
type replacer struct {
	prefixes []Prefix // the longest From first
	isUsed   []bool
}

// replace applies the first prefix that fits a path.
func (r *replacer) replace(path string) string {
	for i, p := range r.prefixes {
		if result, ok := p.apply(path); ok {
			r.isUsed[i] = true
			return result
		}
	}
	return path
}

// withPrefixes returns a source with other names of modules. It owns src, also after an error.
func withPrefixes(src format.Source, prefixes []Prefix) (format.Source, error) {
	if len(prefixes) == 0 {
		return src, nil
	}
	s, err := replacePrefixes(src, prefixes)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return s, nil
}

func replacePrefixes(src format.Source, prefixes []Prefix) (*prefixed, error) {
	r := &replacer{slices.Clone(prefixes), make([]bool, len(prefixes))}
	slices.SortStableFunc(r.prefixes, func(p, q Prefix) int { return len(q.From) - len(p.From) })
	for i, p := range r.prefixes {
		if err := p.check(); err != nil {
			return nil, err
		}
		if i > 0 && p.From == r.prefixes[i-1].From {
			return nil, fault.New(fault.Mismatch, "Options.Prefix names the prefix %q twice", p.From)
		}
	}
	s := &prefixed{Source: src, manifest: *src.Manifest()}
	m := &s.manifest
	m.Adapters, m.Notes = slices.Clone(m.Adapters), slices.Clone(m.Notes)
	for i := range m.Adapters {
		if err := r.adapter(&m.Adapters[i]); err != nil {
			return nil, err
		}
	}
	if i := slices.Index(r.isUsed, false); i >= 0 {
		return nil, unusedPrefix(r.prefixes[i].From, src.Manifest().Adapters)
	}
	s.keep(src.Manifest())
	return s, nil
}

// adapter renames the modules of an adapter, wherever its records name them.
func (r *replacer) adapter(a *format.Adapter) error {
	a.Layers, a.Beside, a.Requires = slices.Clone(a.Layers), slices.Clone(a.Beside), slices.Clone(a.Requires)
	modules := make(map[string]bool, len(a.Layers))
	for i := range a.Layers {
		module, _ := naming.CutNesting(a.Layers[i].Module)
		modules[module], modules[a.Layers[i].Module] = true, true
	}
	for i := range a.Requires {
		if q := &a.Requires[i]; modules[q.Where] || modules[naming.Module(q.Where)] {
			q.Where = r.replace(q.Where)
		}
	}
	seen := make(map[string]string, len(a.Layers))
	for i := range a.Layers {
		l := &a.Layers[i]
		was := l.Module
		l.Module = r.replace(was)
		if other, ok := seen[l.Module]; ok {
			return fault.New(fault.Mismatch, "with Options.Prefix the modules %q and %q have the same name, %q", other, was, l.Module)
		}
		seen[l.Module] = was
		if err := checkName(l.Module); err != nil {
			return err
		}
	}
	for i := range a.Beside {
		if b := &a.Beside[i]; b.Action != format.Opaque {
			b.Target = r.replace(b.Target)
		}
	}
	slices.SortStableFunc(a.Layers, func(x, y format.Layer) int { return strings.Compare(x.Module, y.Module) })
	return nil
}

// unusedPrefix returns the error for a prefix that fits no module.
func unusedPrefix(from string, adapters []format.Adapter) error {
	seen := make(map[string]bool)
	var fronts []string
	for i := range adapters {
		for _, l := range adapters[i].Layers {
			if front := naming.Front(l.Module); !seen[front] {
				seen[front] = true
				fronts = append(fronts, front)
			}
		}
	}
	slices.Sort(fronts)
	return fault.New(fault.Mismatch, "no module of the adapter begins with the prefix %q of Options.Prefix", from).
		WithHint("the modules begin with %s", fault.List(fronts, 10))
}

// prefixed is a source with other names of modules.
type prefixed struct {
	format.Source
	manifest format.Manifest
	kept     []int // for each attachment, its blob in the source
}

// keep keeps the attachments, except those that give the names of the source back: its header and
// its configuration, whose patterns can name modules.
func (s *prefixed) keep(own *format.Manifest) {
	s.manifest.Attachments = nil
	for i, a := range own.Attachments {
		name := a.Name[strings.LastIndexByte(a.Name, '/')+1:]
		if name != format.SourceHeader && name != format.PEFTConfig {
			s.manifest.Attachments = append(s.manifest.Attachments, a)
			s.kept = append(s.kept, len(own.Tensors)+i)
		}
	}
}

func (s *prefixed) Manifest() *format.Manifest { return &s.manifest }

func (s *prefixed) ReadBlobAt(p []byte, i int, off int64) error {
	if n := len(s.manifest.Tensors); i >= n {
		i = s.kept[i-n]
	}
	return s.Source.ReadBlobAt(p, i, off)
}

func (s *prefixed) Unchanged() error { return fileio.Unchanged(s.Source) }

// noteFile says that the adapter's own file cannot be restored.
func (s *prefixed) noteFile() {
	s.manifest.Notes = append(s.manifest.Notes,
		"the modules have other names than in the source: the output keeps these, and not the file that they come from")
}
