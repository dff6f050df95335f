package format

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/jsontext"
)

// encoder appends canonical JSON. The manifest and the content document share its records.
type encoder struct {
	buf []byte
	// index appends the JSON for tensor i: its position in a manifest, its description in a content
	// document.
	index func(dst []byte, i int) []byte
	err   error // a value that the format cannot hold
}

func appendIndex(dst []byte, i int) []byte { return strconv.AppendInt(dst, int64(i), 10) }

// encodeManifest returns the text of a manifest. The lists are sorted and the tensors are in
// storage order; index appends the position of a tensor that a layer refers to.
func encodeManifest(m *Manifest, codings []coding, index func(dst []byte, i int) []byte) ([]byte, error) {
	least := leastManifestBytes(m)
	e := encoder{index: index, buf: make([]byte, 0, least+least/8)} // the slack is for numbers of more than one digit
	e.text(`{"adapters":`)
	list(&e, m.Adapters, e.adapter)
	e.text(`,"attachments":`)
	list(&e, m.Attachments, func(a *Attachment) {
		e.text(`{"name":`).str(a.Name).text(`,"sha256":`).str(a.SHA256).text(`,"size":`).integer(a.NBytes).text("}")
	})
	e.text(`,"metadata":`).texts(m.Metadata)
	p := &m.Provenance
	e.text(`,"provenance":{"source":`).str(p.Source).text(`,"tool":`).str(p.Tool).text(`,"version":`).str(p.Version)
	e.text(`},"tensors":`)
	i := 0
	list(&e, m.Tensors, func(t *Tensor) {
		e.tensor(t, codings[i])
		i++
	})
	e.text("}")
	return e.buf, e.err
}

// leastManifestBytes is a lower bound for the length of encodeManifest's text. It counts names
// unescaped and numbers as one digit.
func leastManifestBytes(m *Manifest) (n int64) {
	for i := range m.Tensors {
		t := &m.Tensors[i]
		n += int64(len(`{"coding":"raw","dtype":"I8","name":"","shape":[]}`) + len(t.Name) + len(t.Shape))
	}
	for i := range m.Adapters {
		a := &m.Adapters[i]
		for j := range a.Layers {
			l := &a.Layers[j]
			n += int64(len(`{"kind":"","module":"","rank":1,"roles":{},"scaling":""}`) + len(l.Kind) + len(l.Module))
			for role := range l.Roles {
				n += int64(len(`"":1`) + len(role))
			}
		}
		for j := range a.Beside {
			n += int64(len(`{"action":"","tensor":1}`) + len(a.Beside[j].Action))
		}
	}
	return n
}

func (e *encoder) adapter(a *Adapter) {
	e.text(`{"base":{"fingerprints":`).texts(a.Base.Fingerprints)
	e.text(`,"name":`).str(a.Base.Name).text(`,"revision":`).str(a.Base.Revision).text(`},"beside":`)
	list(e, a.Beside, e.beside)
	e.text(`,"dialect":`).str(a.Dialect).text(`,"layers":`)
	list(e, a.Layers, e.layer)
	e.text(`,"method":`).str(string(a.Method)).text(`,"name":`).str(a.Name).text(`,"orientation":`).str(string(a.Orientation))
	e.text(`,"requires":`)
	list(e, a.Requires, e.requirement)
	e.text("}")
}

func (e *encoder) tensor(t *Tensor, c coding) {
	e.text(`{"coding":`).str(codingNames[c]).text(`,"dtype":`).str(t.DType.String())
	e.text(`,"name":`).str(t.Name).text(`,"shape":`).shape(t.Shape).text("}")
}

func (e *encoder) requirement(r *Requirement) {
	e.text(`{"feature":`).str(string(r.Feature)).text(`,"where":`).str(r.Where).text("}")
}

func (e *encoder) layer(l *Layer) {
	e.text("{")
	if l.Scaling != Fixed {
		e.text(`"alpha":`).real(l.Alpha).text(",")
	}
	e.text(`"kind":`).str(string(l.Kind)).text(`,"module":`).str(l.Module).text(`,"rank":`).integer(int64(l.Rank))
	e.text(`,"roles":{`)
	for i, role := range rolesOf(l) {
		if i > 0 {
			e.text(",")
		}
		e.str(string(role)).text(":")
		e.buf = e.index(e.buf, l.Roles[role])
	}
	e.text("}")
	if l.Scaling == Fixed {
		e.text(`,"scale":`).real(l.Fixed)
	}
	e.text(`,"scaling":`).str(string(l.Scaling)).text("}")
}

func (e *encoder) beside(b *Beside) {
	e.text(`{"action":`).str(string(b.Action))
	if b.Action == Rows {
		e.text(`,"rows":`)
		list(e, b.Rows, func(n *int64) { e.integer(*n) })
	}
	if b.Action != Opaque {
		e.text(`,"target":`).str(b.Target)
	}
	e.text(`,"tensor":`)
	e.buf = e.index(e.buf, b.Tensor)
	e.text("}")
}

// text appends JSON as it is. Like the methods below it returns e, so that the code of a record
// reads like its table in the spec.
func (e *encoder) text(s string) *encoder { e.buf = append(e.buf, s...); return e }

func (e *encoder) str(s string) *encoder { e.buf = jsontext.AppendCanonical(e.buf, s); return e }

func (e *encoder) integer(n int64) *encoder { e.buf = strconv.AppendInt(e.buf, n, 10); return e }

// real appends a finite float64 in its only form (spec section 7).
func (e *encoder) real(x float64) *encoder {
	if math.IsInf(x, 0) || math.IsNaN(x) {
		e.err = broken(30, "alpha or scale is %v, want a finite number", x)
	}
	if n, ok := asInteger(x); ok {
		return e.integer(n)
	}
	e.buf = fmt.Appendf(e.buf, `"%016x"`, math.Float64bits(x))
	return e
}

func (e *encoder) shape(shape []uint64) *encoder {
	list(e, shape, func(d *uint64) { e.buf = strconv.AppendUint(e.buf, *d, 10) })
	return e
}

func (e *encoder) texts(m map[string]string) *encoder {
	e.text("{")
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			e.text(",")
		}
		e.str(key).text(":").str(m[key])
	}
	return e.text("}")
}

// list appends an array.
func list[T any](e *encoder, items []T, item func(*T)) {
	e.text("[")
	for i := range items {
		if i > 0 {
			e.text(",")
		}
		item(&items[i])
	}
	e.text("]")
}
