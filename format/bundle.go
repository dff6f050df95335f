package format

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// This file makes bundles of adapters and takes them apart. In a file of several adapters, the
// adapter's name and a slash precede the names of its attachments and its metadata (spec section
// 7.6).

// Member is an adapter with its name in a bundle.
type Member struct {
	Name   string
	Source Source // of one adapter
}

// Bundle joins adapters into one source. Their names must be distinct and not empty. If an
// attachment's name is too long for the format once it has its prefix, Bundle leaves the attachment
// out and adds a note to the manifest. The bundle owns the sources of its members: close the bundle
// instead of them. After an error they stay open, and the caller closes them. Bundle reads no
// tensor; [Share] stores equal tensors of several members once.
func Bundle(members ...Member) (Source, error) {
	j := joiner{remapped: &remapped{manifest: &Manifest{Metadata: make(map[string]string)}}}
	for _, member := range members {
		prefix := member.Name + "/"
		if len(members) == 1 {
			prefix = ""
		}
		if err := j.add(member, prefix); err != nil {
			return nil, err
		}
	}
	j.blobs = append(j.blobs, j.attached...)
	names := memberNames(j.manifest)
	slices.Sort(names)
	for i := range names {
		if i > 0 && names[i] == names[i-1] {
			return nil, broken(33, "two members of the bundle are called %q", names[i])
		}
	}
	if err := Validate(j.manifest); err != nil {
		return nil, err
	}
	return j.remapped, nil
}

// joiner makes a bundle. The attachments of all members come after all tensors.
type joiner struct {
	*remapped
	attached []blob
}

func (j *joiner) add(member Member, prefix string) error {
	m, part := j.manifest, member.Source.Manifest()
	switch err := checkMemberName(member.Name); {
	case err != nil:
		return err
	case part == nil:
		return noManifest()
	case len(part.Adapters) != 1:
		return fault.New(ErrUnsupported, "member %q of the bundle is itself a bundle of %d adapters", member.Name, len(part.Adapters))
	}
	j.closers = append(j.closers, member.Source)
	shift := len(m.Tensors)
	m.Adapters = append(m.Adapters, renumber(&part.Adapters[0], member.Name, func(i int) int { return shift + i }))
	m.Tensors = append(m.Tensors, part.Tensors...)
	for i := range part.Tensors {
		j.blobs = append(j.blobs, blob{member.Source, i})
	}
	for i, a := range part.Attachments {
		short := a.Name
		a.Name = prefix + a.Name
		if validatePath(a.Name) != nil || len(a.Name) > MaxNameBytes {
			m.Notes = append(m.Notes, fmt.Sprintf("the attachment %q of %q is left out: its name in the bundle would be invalid", short, member.Name))
			continue
		}
		m.Attachments = append(m.Attachments, a)
		j.attached = append(j.attached, blob{member.Source, len(part.Tensors) + i})
	}
	j.addTexts(member.Name, part, prefix)
	return nil
}

// addTexts adds the metadata, the provenance and the notes of a member.
func (j *joiner) addTexts(name string, part *Manifest, prefix string) {
	m := j.manifest
	for key, value := range part.Metadata {
		if key = prefix + key; len(key) <= MaxNameBytes {
			m.Metadata[key] = value
		}
	}
	if key := prefix + sourceKey; part.Provenance.Source != "" && len(key) <= MaxNameBytes {
		m.Metadata[key] = part.Provenance.Source
	}
	for _, note := range part.Notes {
		m.Notes = append(m.Notes, fmt.Sprintf("%q: %s", name, note))
	}
}

// sourceKey is the metadata entry that keeps the provenance source of a member.
const sourceKey = "provenance.source"

// checkMemberName checks a name for an adapter of a bundle (R31, R32, R35).
func checkMemberName(name string) error {
	switch {
	case name == "":
		return broken(35, "a member of the bundle has no name")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return broken(31, "the member name %q contains a control character", name)
	case len(name) > MaxNameBytes:
		return broken(32, "a member name has %d bytes, the limit is %d", len(name), MaxNameBytes)
	}
	return nil
}

// Select returns one adapter of a bundle as a source of its own, without a name. Its content id is
// that of a file with this adapter alone. It owns src: close it instead of src. To select several
// adapters of one bundle, close src once, after all of them have been read. After an error src
// stays open.
func Select(src Source, name string) (Source, error) {
	m := src.Manifest()
	if m == nil {
		return nil, noManifest()
	}
	at := slices.IndexFunc(m.Adapters, func(a Adapter) bool { return a.Name == name })
	if at < 0 {
		return nil, fault.New(fault.Mismatch, "the bundle has no adapter %q", name).
			WithHint("its adapters are %s", fault.List(memberNames(m), 10))
	}
	s := &remapped{closers: []io.Closer{src}, manifest: &Manifest{Metadata: make(map[string]string), Provenance: m.Provenance}}
	own := slices.Compact(m.Adapters[at].Tensors())
	position := make(map[int]int, len(own))
	for to, from := range own {
		position[from] = to
		s.manifest.Tensors = append(s.manifest.Tensors, m.Tensors[from])
		s.blobs = append(s.blobs, blob{src, from})
	}
	s.manifest.Adapters = []Adapter{renumber(&m.Adapters[at], "", func(i int) int { return position[i] })}
	prefix := name + "/"
	if len(m.Adapters) == 1 {
		prefix = "" // in a file of one adapter the names have no prefix
	}
	for i, a := range m.Attachments {
		if short, ok := strings.CutPrefix(a.Name, prefix); ok && short != "" {
			a.Name = short
			s.manifest.Attachments = append(s.manifest.Attachments, a)
			s.blobs = append(s.blobs, blob{src, len(m.Tensors) + i})
		}
	}
	for key, value := range m.Metadata {
		if short, ok := strings.CutPrefix(key, prefix); ok && short != "" {
			s.manifest.Metadata[short] = value
		}
	}
	if source, ok := s.manifest.Metadata[sourceKey]; ok {
		s.manifest.Provenance.Source = source
		delete(s.manifest.Metadata, sourceKey)
	}
	if err := Validate(s.manifest); err != nil {
		return nil, err
	}
	return s, nil
}

func memberNames(m *Manifest) (names []string) {
	for i := range m.Adapters {
		names = append(names, m.Adapters[i].Name)
	}
	return names
}

// sharedTensors is the critical feature that lets several adapters of a bundle refer to one tensor.
const sharedTensors = 1 << 0

// ruleShared requires that a file with the feature really shares a tensor.
const ruleShared = 77

// Share returns a source that stores a tensor once if several adapters have it with the same name,
// dtype, shape and bytes. A .lora file with shared tensors has the same content id, but readers of
// version 1.0 refuse it by R5. Share reads the tensors that agree in name, dtype and shape. It
// returns src itself if no two tensors are equal. The result owns src: close it instead of src.
// After an error src stays open.
func Share(ctx context.Context, src Source) (Source, error) {
	m := src.Manifest()
	if err := Validate(m); err != nil {
		return nil, err
	}
	first, err := firstEquals(ctx, src)
	if err != nil {
		return nil, err
	}
	s := &remapped{closers: []io.Closer{src}}
	out := *m
	s.manifest = &out
	position := make([]int, len(m.Tensors))
	out.Tensors = nil
	for i := range m.Tensors {
		if first[i] != i {
			position[i] = position[first[i]]
			continue
		}
		position[i] = len(out.Tensors)
		out.Tensors = append(out.Tensors, m.Tensors[i])
		s.blobs = append(s.blobs, blob{src, i})
	}
	if len(out.Tensors) == len(m.Tensors) {
		return src, nil
	}
	for i := range m.Attachments {
		s.blobs = append(s.blobs, blob{src, len(m.Tensors) + i})
	}
	out.Adapters = slices.Clone(m.Adapters)
	for i := range out.Adapters {
		a := &out.Adapters[i]
		*a = renumber(a, a.Name, func(i int) int { return position[i] })
	}
	return s, nil
}

// firstEquals returns, for every tensor, the first tensor equal to it, which may be itself. R47
// excludes equal tensors within one adapter.
func firstEquals(ctx context.Context, src Source) ([]int, error) {
	m := src.Manifest()
	alike := make(map[string][]int)
	for i := range m.Tensors {
		t := &m.Tensors[i]
		key := fmt.Sprintf("%v %v %s", t.DType, t.Shape, t.Name)
		alike[key] = append(alike[key], i)
	}
	first := make([]int, len(m.Tensors))
	buffer := make([]byte, readBytes)
	for _, group := range alike {
		bySum := make(map[sum]int)
		for _, i := range group {
			first[i] = i
			if len(group) == 1 {
				continue
			}
			id, err := blobSum(ctx, src, i, m.Tensors[i].NBytes(), buffer)
			if err != nil {
				return nil, err
			}
			if j, ok := bySum[id]; ok {
				first[i] = j
			} else {
				bySum[id] = i
			}
		}
	}
	return first, nil
}

// sharesTensors reports whether several adapters of a valid manifest refer to the same tensor.
func (m *Manifest) sharesTensors() bool {
	references := 0
	for i := range m.Adapters {
		for j := range m.Adapters[i].Layers {
			references += len(m.Adapters[i].Layers[j].Roles)
		}
		references += len(m.Adapters[i].Beside)
	}
	return references > len(m.Tensors)
}

// checkShared checks the critical features of a file against its manifest.
func checkShared(m *Manifest, critical uint32) error {
	shares, says := m.sharesTensors(), critical&sharedTensors != 0
	switch {
	case shares && !says:
		return broken(46, "two adapters refer to one tensor, and critical bit 0 is not set")
	case says && !shares:
		return broken(ruleShared, "critical bit 0 is set, and no two adapters refer to one tensor").At(20)
	}
	return nil
}

// renumber copies an adapter with another name and other tensor indices.
func renumber(a *Adapter, name string, index func(int) int) Adapter {
	out := *a
	out.Name = name
	out.Layers = slices.Clone(a.Layers)
	for i := range out.Layers {
		roles := maps.Clone(out.Layers[i].Roles)
		for role, t := range roles {
			roles[role] = index(t)
		}
		out.Layers[i].Roles = roles
	}
	out.Beside = slices.Clone(a.Beside)
	for i := range out.Beside {
		out.Beside[i].Tensor = index(out.Beside[i].Tensor)
	}
	return out
}

// blob identifies a blob of a source.
type blob struct {
	src   Source
	index int
}

// remapped is a source assembled from the blobs of other sources.
type remapped struct {
	manifest *Manifest
	blobs    []blob
	closers  []io.Closer
}

func (s *remapped) Manifest() *Manifest { return s.manifest }

func (s *remapped) ReadBlobAt(p []byte, i int, off int64) error {
	return s.blobs[i].src.ReadBlobAt(p, s.blobs[i].index, off)
}

func (s *remapped) Unchanged() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, fileio.Unchanged(c))
	}
	return errors.Join(errs...)
}

func (s *remapped) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// blobSum hashes a blob of n bytes. It reads pieces as long as the buffer.
func blobSum(ctx context.Context, src Source, i int, n int64, buffer []byte) (id sum, err error) {
	h := sha256.New()
	for off := int64(0); off < n; off += int64(len(buffer)) {
		if err := ctx.Err(); err != nil {
			return id, err
		}
		p := buffer[:min(int64(len(buffer)), n-off)]
		if err := src.ReadBlobAt(p, i, off); err != nil {
			return id, err
		}
		h.Write(p)
	}
	h.Sum(id[:0])
	return id, nil
}
