package format

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// This file reads the records of the manifest (spec section 7), one function per table. Members
// arrive in ascending order, so each function reads like its table.

// parseManifest reads and checks a manifest. newer says that the file has a later minor version
// than this reader. The result shares memory with text.
func parseManifest(text string, newer bool) (*Manifest, []coding, error) {
	s := newScanner(text, newer)
	switch c := s.Next(); c {
	case '{', ' ', '\t', '\n', '\r': // white space has its own rule
	default:
		s.fail(19, 0, "the manifest begins with %q, want {", c)
		return nil, nil, s.err()
	}
	m, codings := s.manifest()
	s.End()
	if !s.ok() {
		return nil, nil, s.err()
	}
	m.Notes = s.notes
	if err := validate(m, codings); err != nil {
		return nil, nil, err
	}
	for i := range m.Adapters {
		for j := range m.Adapters[i].Beside {
			if b := &m.Adapters[i].Beside[j]; b.Action == Opaque {
				b.Target = m.Tensors[b.Tensor].Name
			}
		}
	}
	return m, codings, nil
}

func (s *scanner) manifest() (*Manifest, []coding) {
	m := &Manifest{}
	var codings []coding
	for key := range s.record("manifest", "adapters", "attachments", "metadata", "provenance", "tensors") {
		switch key {
		case "adapters":
			last := ""
			for i := range s.Array() {
				at := s.Pos()
				a := s.adapter()
				if i > 0 {
					s.ascending(at, "adapter", a.Name > last, a.Name)
				}
				m.Adapters, last = append(m.Adapters, a), a.Name
			}
		case "attachments":
			last := ""
			for i := range s.Array() {
				at := s.Pos()
				a := s.attachment()
				if i > 0 {
					s.ascending(at, "attachment", a.Name > last, a.Name)
				}
				m.Attachments, last = append(m.Attachments, a), a.Name
			}
		case "metadata":
			m.Metadata = s.texts(func(s *scanner) string { return s.Str() })
		case "provenance":
			m.Provenance = s.provenance()
		case "tensors":
			for i := range s.Array() {
				if i == maxTensors {
					s.fail(49, s.Pos(), "more than %d tensors", maxTensors)
				}
				t, c := s.tensor()
				m.Tensors, codings = append(m.Tensors, t), append(codings, c)
			}
		}
	}
	return m, codings
}

func (s *scanner) provenance() (p Provenance) {
	for key := range s.record("provenance", "source", "tool", "version") {
		switch key {
		case "source":
			p.Source = s.Str()
		case "tool":
			p.Tool = s.Str()
		case "version":
			p.Version = s.Str()
		}
	}
	return p
}

func (s *scanner) adapter() (a Adapter) {
	for key := range s.record("adapter", "base", "beside", "dialect", "layers", "method", "name", "orientation", "requires") {
		switch key {
		case "base":
			a.Base = s.base()
		case "beside":
			last := -1
			for range s.Array() {
				at := s.Pos()
				b := s.beside()
				s.ascending(at, "beside", b.Tensor > last, strconv.Itoa(b.Tensor))
				a.Beside, last = append(a.Beside, b), b.Tensor
			}
		case "dialect":
			a.Dialect = s.nameOrEmpty()
		case "layers":
			last := ""
			for range s.Array() {
				at := s.Pos()
				l := s.layer()
				s.ascending(at, "layer", l.Module > last, l.Module)
				a.Layers, last = append(a.Layers, l), l.Module
			}
		case "method":
			a.Method = s.method()
		case "name":
			a.Name = s.nameOrEmpty()
		case "orientation":
			a.Orientation = oneOf(s, "orientation", OrientationUnknown, MxN, NxM)
		case "requires":
			var last Requirement
			for range s.Array() {
				at := s.Pos()
				r := s.requirement()
				s.ascending(at, "requirement", compareRequirements(r, last) > 0, string(r.Feature)+" "+r.Where)
				a.Requires, last = append(a.Requires, r), r
			}
		}
	}
	return a
}

func compareRequirements(a, b Requirement) int {
	if c := cmp.Compare(a.Feature, b.Feature); c != 0 {
		return c
	}
	return strings.Compare(a.Where, b.Where)
}

func (s *scanner) base() (b Base) {
	for key := range s.record("base", "fingerprints", "name", "revision") {
		switch key {
		case "fingerprints":
			b.Fingerprints = s.texts((*scanner).digest)
		case "name":
			b.Name = s.Str()
		case "revision":
			b.Revision = s.Str()
		}
	}
	return b
}

func (s *scanner) requirement() (r Requirement) {
	for key := range s.record("requirement", "feature", "where") {
		switch key {
		case "feature":
			r.Feature = Feature(s.name())
		case "where":
			r.Where = s.nameOrEmpty()
		}
	}
	return r
}

func (s *scanner) layer() (l Layer) {
	at := s.Pos()
	var hasAlpha, hasScale bool
	for key := range s.record("layer", "alpha?", "kind", "module", "rank", "roles", "scale?", "scaling") {
		switch key {
		case "alpha":
			l.Alpha, hasAlpha = s.real(), true
		case "kind":
			l.Kind = oneOf(s, "kind", kinds...)
		case "module":
			l.Module = s.name()
		case "rank":
			l.Rank = int(s.count())
		case "roles":
			l.Roles = make(map[Role]int)
			for at, role := range s.Object() {
				s.checkName(at, role)
				l.Roles[Role(role)] = s.index()
			}
		case "scale":
			l.Fixed, hasScale = s.real(), true
		case "scaling":
			l.Scaling = oneOf(s, "scaling", AlphaOverR, AlphaOverSqrtR, Fixed)
		}
	}
	if !s.ok() {
		return l
	}
	wanted, unlisted, has, hasNot := "alpha", "scale", hasAlpha, hasScale
	if l.Scaling == Fixed {
		wanted, unlisted, has, hasNot = "scale", "alpha", hasScale, hasAlpha
	}
	s.onlyFor(at, "layer with scaling "+string(l.Scaling), wanted, unlisted, has, hasNot)
	if l.Scaling == Fixed {
		l.Alpha = 0
	} else {
		l.Fixed = 0
	}
	return l
}

// onlyFor checks members that a table lists only for some records: wanted must be present, unlisted
// must be absent.
func (s *scanner) onlyFor(at int, what, wanted, unlisted string, hasWanted, hasUnlisted bool) {
	if wanted != "" && !hasWanted {
		s.fail(26, at, "%s lacks member %q", what, wanted)
	}
	if hasUnlisted && !s.newer {
		s.fail(27, at, "%s has member %q", what, unlisted)
	}
}

func (s *scanner) beside() (b Beside) {
	at := s.Pos()
	var hasRows, hasTarget bool
	for key := range s.record("beside", "action", "rows?", "target?", "tensor") {
		switch key {
		case "action":
			b.Action = oneOf(s, "action", Replace, Rows, Opaque, Difference)
		case "rows":
			b.Rows, hasRows = s.counts(math.MaxInt), true
		case "target":
			b.Target, hasTarget = s.name(), true
		case "tensor":
			b.Tensor = s.index()
		}
	}
	if !s.ok() {
		return b
	}
	what := "beside with action " + string(b.Action)
	switch b.Action {
	case Rows:
		s.onlyFor(at, what, "rows", "", hasRows, false)
		s.onlyFor(at, what, "target", "", hasTarget, false)
	case Replace, Difference:
		s.onlyFor(at, what, "target", "rows", hasTarget, hasRows)
		b.Rows = nil
	case Opaque:
		s.onlyFor(at, what, "", "rows", false, hasRows)
		s.onlyFor(at, what, "", "target", false, hasTarget)
		b.Rows, b.Target = nil, ""
	}
	return b
}

func (s *scanner) tensor() (t Tensor, c coding) {
	for key := range s.record("tensor", "coding", "dtype", "name", "shape") {
		switch key {
		case "coding":
			if oneOf(s, "coding", codingNames...) == codingNames[planes] {
				c = planes
			}
		case "dtype":
			at, word := s.Pos(), s.Str()
			var ok bool
			if t.DType, ok = dtype.Parse(word); !ok && s.ok() {
				s.fail(29, at, "unknown dtype %q", word)
			}
		case "name":
			t.Name = s.name()
		case "shape":
			shape := s.counts(maxDims)
			t.Shape = make([]uint64, len(shape))
			for i, d := range shape {
				t.Shape[i] = uint64(d)
			}
		}
	}
	return t, c
}

func (s *scanner) attachment() (a Attachment) {
	for key := range s.record("attachment", "name", "sha256", "size") {
		switch key {
		case "name":
			a.Name = s.name()
		case "sha256":
			if strings.HasPrefix(s.Rest(), `""`) {
				s.Str()
			} else {
				a.SHA256 = s.digest()
			}
		case "size":
			a.NBytes = s.count()
		}
	}
	return a
}

// The types of values.

// name reads a name (R31, R32).
func (s *scanner) name() string {
	at := s.Pos()
	name := s.Str()
	s.checkName(at, name)
	return name
}

func (s *scanner) nameOrEmpty() string {
	at := s.Pos()
	name := s.Str()
	if name != "" {
		s.checkName(at, name)
	}
	return name
}

func (s *scanner) checkName(at int, name string) {
	if !s.ok() {
		return
	}
	if name == "" {
		s.fail(31, at, "the name is empty")
	}
	for i := range len(name) {
		if name[i] < 0x20 || name[i] == 0x7f {
			s.fail(31, at, "the name contains the control character %q", name[i])
			break
		}
	}
	if len(name) > MaxNameBytes {
		s.fail(32, at, "the name has %d bytes, the limit is %d", len(name), MaxNameBytes)
	}
}

// count reads a non-negative integer.
func (s *scanner) count() int64 {
	at := s.Pos()
	n := s.Integer()
	if n < 0 {
		s.fail(28, at, "got %d, want a count", n)
	}
	return n
}

// index reads the position of a tensor. validate checks later that the tensor exists.
func (s *scanner) index() int { return int(min(s.count(), math.MaxInt32)) }

// counts reads an array of at most limit counts. It allocates once: the commas give the length.
func (s *scanner) counts(limit int) []int64 {
	var list []int64
	start := s.Pos()
	for i := range s.Array() {
		if i == 0 {
			rest, _, _ := strings.Cut(s.Rest(), "]")
			n := strings.Count(rest, ",") + 1
			if n > limit {
				s.fail(50, start, "%d dimensions, the limit is %d", n, limit)
				return nil
			}
			list = make([]int64, 0, n)
		}
		list = append(list, s.count())
	}
	return list
}

// real reads a finite float64 in its only form.
func (s *scanner) real() float64 {
	if s.Next() != '"' {
		return float64(s.Integer())
	}
	at := s.Pos()
	digits := s.Str()
	x, ok := parseHexReal(digits)
	if !ok && s.ok() {
		s.fail(30, at, "real %q, want 16 lowercase hex digits for a finite number that is not an integer", digits)
	}
	return x
}

func parseHexReal(digits string) (float64, bool) {
	if len(digits) != 16 || !isLowerHex(digits) {
		return 0, false
	}
	bits, _ := strconv.ParseUint(digits, 16, 64)
	x := math.Float64frombits(bits)
	_, integer := asInteger(x)
	return x, !integer && !math.IsInf(x, 0) && !math.IsNaN(x)
}

// asInteger returns x as an integer, if it is one that the manifest can hold.
func asInteger(x float64) (int64, bool) {
	if math.Abs(x) > maxInteger || x != math.Trunc(x) {
		return 0, false
	}
	return int64(x), true
}

func (s *scanner) digest() string {
	at := s.Pos()
	digest := s.Str()
	if s.ok() && (len(digest) != 2*digestBytes || !isLowerHex(digest)) {
		s.fail(28, at, "got %q, want %d lowercase hex digits", digest, 2*digestBytes)
	}
	return digest
}

func isLowerHex(digits string) bool {
	return strings.Trim(digits, "0123456789abcdef") == ""
}

// texts reads an object whose values are strings; value reads each string.
func (s *scanner) texts(value func(*scanner) string) map[string]string {
	m := make(map[string]string)
	for at, key := range s.Object() {
		s.checkName(at, key)
		m[key] = value(s)
	}
	return m
}

func (s *scanner) method() Method {
	at := s.Pos()
	method := s.Str()
	if word, ok := strings.CutPrefix(method, "other:"); ok {
		s.checkName(at, word)
	} else if method != string(MethodLoRA) && method != string(MethodDoRA) && s.ok() {
		s.fail(29, at, "unknown method %q", method)
	}
	return Method(method)
}

// oneOf reads an enumerated string.
func oneOf[T ~string](s *scanner, what string, values ...T) T {
	at := s.Pos()
	word := s.Str()
	for _, v := range values {
		if word == string(v) {
			return v
		}
	}
	if s.ok() {
		s.fail(29, at, "unknown %s %q", what, word)
	}
	return ""
}

// ascending checks that a list continues in ascending order.
func (s *scanner) ascending(at int, what string, ok bool, key string) {
	if !ok && s.ok() {
		s.fail(33, at, "%s %q is out of order, want strictly ascending order", what, key)
	}
}
