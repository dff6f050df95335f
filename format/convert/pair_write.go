package convert

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	safefile "github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
)

// pairWriting is how a pairDialect is written: one safetensors file.
type pairWriting struct {
	names naming.Namespace
	// tail returns the end of the key for a role in a kind of layer; "" if the dialect has none.
	tail func(kind format.Kind, role format.Role) string
	// shape returns the shape in which a factor is stored.
	shape func(l *newLayer, role format.Role, shape []uint64) []uint64
	// alphas says that each module can have an alpha.
	alphas bool
	// needsAlphas says that each module has one, even where the scale is 1.
	needsAlphas bool
	// features are those that the keys can express.
	features []format.Feature
	// metadata makes __metadata__ from that of the source.
	metadata func(ctx context.Context, f *pairFile, source map[string]string) (map[string]string, error)
}

func (d *pairDialect) Create(path string, o CreateOptions) (format.Sink, error) {
	if d.writing == nil {
		return d.readOnly.Create(path, o)
	}
	return &pairSink{dialect: d, path: path, options: o}, nil
}

func (d *pairDialect) CreateTo(out output.Output, o CreateOptions) (format.Sink, error) {
	if d.writing == nil {
		return d.readOnly.Create("", o)
	}
	return &pairOutput{d, out, o}, nil
}

func (d *pairDialect) isReadOnly() bool { return d.writing == nil }

// pairSink writes a file to a path.
type pairSink struct {
	dialect *pairDialect
	path    string
	options CreateOptions
}

func (s *pairSink) Check(ctx context.Context, src format.Source) error {
	f := &pairFile{}
	if src != nil {
		var err error
		if f, err = composePairs(ctx, s.dialect, src, &s.options); err != nil {
			return err
		}
	}
	return s.checkPlace(ctx, f)
}

func (s *pairSink) checkPlace(ctx context.Context, f *pairFile) error {
	if kindOf(s.path) != safetensorsFile {
		return fault.New(fault.Unsupported, "%s is no name for an adapter of the dialect %s, which is a "+
			"safetensors file", s.path, s.dialect.name).WithHint("name an output ending in .safetensors")
	}
	place := fileio.Place{
		Path: s.path, Replace: s.options.Replace, Inputs: s.options.Inputs, Bytes: f.size(),
		Known: under(ctx, isPEFTFile), Kind: "the weights of an adapter",
	}
	return place.Check()
}

func (s *pairSink) Store(ctx context.Context, src format.Source) error {
	f, err := composePairs(ctx, s.dialect, src, &s.options)
	if err != nil {
		return err
	}
	if err := s.checkPlace(ctx, f); err != nil {
		return err
	}
	disk, err := output.NewDisk(s.path, output.DiskOptions{Replace: s.options.Replace})
	if err != nil {
		return err
	}
	return storeTo(ctx, disk, src, func() error { return f.store(disk, &s.options) })
}

// PeakBytes counts the manifest and two tensors: the one being written, and its source.
func (s *pairSink) PeakBytes(src format.Source) int64 {
	m := src.Manifest()
	largest := int64(0)
	for i := range m.Tensors {
		largest = max(largest, m.Tensors[i].NBytes())
	}
	return format.WriterOptions{Workers: 1}.PeakBytes(m) + 6*largest // joined and widened
}

// pairOutput writes the file to an output.
type pairOutput struct {
	dialect *pairDialect
	out     output.Output
	options CreateOptions
}

func (s *pairOutput) Store(ctx context.Context, src format.Source) error {
	f, err := composePairs(ctx, s.dialect, src, &s.options)
	if err != nil {
		return err
	}
	return f.store(s.out, &s.options)
}

// pairFile is a file to be written.
type pairFile struct {
	src     format.Source
	layers  []*newLayer
	tensors []newTensor
	remarks []string
	write   func(io.Writer) error

	denoiser string // the architecture of the adapter's denoiser, "" if it is unknown

	last    int // the tensor whose content is at hand
	content []byte
}

// newTensor is a tensor of a new file, with its data or with the factor that gives them.
type newTensor struct {
	format.Tensor
	factor *factor
	data   []byte
}

func (f *pairFile) size() (n int64) {
	for i := range f.tensors {
		n += f.tensors[i].NBytes()
	}
	return n
}

func (f *pairFile) store(out output.Output, o *CreateOptions) error {
	return writeFile(out, output.Info{Mode: o.modeOf(peftWeights)}, f.write)
}

// composePairs plans the file of an adapter in a dialect.
func composePairs(
	ctx context.Context, d *pairDialect, src format.Source, o *CreateOptions,
) (*pairFile, error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	if len(m.Adapters) != 1 {
		return nil, fault.New(fault.Unsupported, "the source is a bundle of %d adapters, but a file of "+
			"the dialect %s holds one", len(m.Adapters), d.name).
			WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	isSame := m.Adapters[0].Dialect == d.name && hasAttachment(src, format.SourceHeader)
	f, err := composeNew(ctx, d, src, o)
	if !isSame || o.FoldScale || o.Base != nil || o.Only != nil || err == nil && !f.hasNamesOf(m) {
		return f, err
	}
	if f == nil {
		f = &pairFile{src: src, last: -1} // the dialect of the source has places for what it has
	}
	f.write, err = restoreOr(ctx, src)
	return f, err
}

// hasNamesOf reports whether the file has the tensors of the source under the same names. It may
// add alphas that say what their absence means.
func (f *pairFile) hasNamesOf(m *format.Manifest) bool {
	names := make(map[string]bool)
	for i := range m.Tensors {
		names[m.Tensors[i].Name] = true
	}
	n := 0
	for i := range f.tensors {
		t := &f.tensors[i]
		switch {
		case names[t.Name]:
			n++
		case !strings.HasSuffix(t.Name, ".alpha"):
			return false
		}
	}
	return n == len(m.Tensors)
}

// composeNew plans a new file; it returns nil with an error.
func composeNew(
	ctx context.Context, d *pairDialect, src format.Source, o *CreateOptions,
) (*pairFile, error) {
	if err := d.checkFeatures(src.Manifest(), o); err != nil {
		return nil, err
	}
	f := &pairFile{src: src, last: -1}
	if err := f.plan(ctx, d, o); err != nil {
		return nil, err
	}
	if err := f.prepare(ctx, d); err != nil {
		return nil, err
	}
	return f, nil
}

// checkFeatures refuses by name what the dialect cannot express, in the components that are wanted.
func (d *pairDialect) checkFeatures(m *format.Manifest, o *CreateOptions) error {
	a := &m.Adapters[0]
	for _, r := range a.Requires {
		if slices.Contains(d.writing.features, r.Feature) || !o.wants(r.Where) {
			continue
		}
		if r.Feature == format.FeatureOpaque {
			return fault.New(fault.Unsupported, "the tensors were archived without their meaning, which "+
				"the dialect %s needs", d.name).WithHint("convert.RestoreTo gives the file back")
		}
		return fault.New(fault.Unsupported, "the adapter requires %q (%s), which the dialect %s cannot "+
			"express", r.Feature, r.Where, d.name).WithHint("%s", hintWithout(r.Feature))
	}
	hint := "keep the adapter as a .lora file"
	for _, b := range a.Beside {
		if b.Action != format.Difference && o.wants(b.Target) {
			return fault.New(fault.Unsupported, "the tensor %q has no place in the dialect %s",
				m.Tensors[b.Tensor].Name, d.name).WithHint("%s", hint)
		}
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		for role := range l.Roles {
			if role != format.RoleAlpha && d.writing.tail(l.Kind, role) == "" && o.wants(l.Module) {
				return fault.New(fault.Unsupported, "layer %q of kind %s has the role %q, which the dialect "+
					"%s cannot express", l.Module, l.Kind, role, d.name).WithHint("%s", hint)
			}
		}
	}
	return nil
}

// hintWithout says what to do with an adapter that needs a feature which a dialect lacks.
func hintWithout(feature format.Feature) string {
	switch feature {
	case format.FeatureHadamard, format.FeatureKronecker, format.FeatureTucker, format.FeatureDifference:
		return "make LoRA of it (rank.ToLoRA), or keep the adapter as a .lora file"
	}
	return "keep the adapter as a .lora file"
}

// wants reports whether a module is of a component to write, by what its name says.
func (o *CreateOptions) wants(module string) bool {
	return len(o.Only) == 0 || naming.IsWanted(module, o.Only)
}

// plan names and makes the layers of the file.
func (f *pairFile) plan(ctx context.Context, d *pairDialect, o *CreateOptions) error {
	w := newWeaver(ctx, f.src)
	w.rounds = o.FoldScale
	updates := w.updates()
	base, shapes := o.indexBase()
	known := architectureNamed(f.src.Manifest().Adapters[0].Base.Name)
	names := naming.Respell(d.writing.names, updates, base, shapes, known)
	f.denoiser = names.Denoiser
	if len(o.Only) > 0 && !names.IsWhole() { // a module that is not wanted need not have a name
		updates = slices.DeleteFunc(updates, func(u naming.Update) bool { return !o.wants(u.Name) })
		names = naming.Respell(d.writing.names, updates, base, shapes, known)
	}
	if err := refuseRespelling(names, d.name); err != nil {
		return err
	}
	modules, err := o.keepOnly(names.Modules)
	if err != nil {
		return err
	}
	if f.layers, err = w.weave(modules); err != nil || !o.FoldScale {
		return err
	}
	for _, l := range f.layers {
		remark, err := l.fold(ctx, f.src)
		if err != nil {
			return err
		}
		if remark != "" {
			f.remarks = append(f.remarks, remark)
		}
	}
	return nil
}

// keepOnly returns the modules of the components to write.
func (o *CreateOptions) keepOnly(modules []naming.Respelled) (kept []naming.Respelled, err error) {
	has := make(map[string]bool)
	for _, m := range modules {
		has[m.Component] = true
		if o.wants(m.Component + ".") {
			kept = append(kept, m)
		}
	}
	if len(kept) == 0 && len(modules) > 0 {
		return nil, fault.New(fault.Mismatch, "the adapter has no layer of %s; it has layers of %s",
			strings.Join(o.Only, ", "), strings.Join(slices.Sorted(maps.Keys(has)), ", ")).
			WithHint("name one of its components in CreateOptions.Only")
	}
	return kept, nil
}

// prepare lists the tensors of the file, and makes its metadata.
func (f *pairFile) prepare(ctx context.Context, d *pairDialect) error {
	m := f.src.Manifest()
	hasScales := slices.ContainsFunc(f.layers, func(l *newLayer) bool { return l.hasScale() && l.scale() != 1 })
	for _, l := range f.layers {
		for _, role := range slices.Sorted(maps.Keys(l.factors)) {
			x := l.factors[role]
			t := format.Tensor{
				Name:  l.name + "." + d.writing.tail(l.kind, role),
				DType: x.dtype, Shape: d.writing.shape(l, role, x.shape),
			}
			f.tensors = append(f.tensors, newTensor{Tensor: t, factor: x})
		}
		if axis := l.axis(); axis != nil {
			t := format.Tensor{Name: l.name + ".on_input", DType: dtype.F32, Shape: []uint64{}}
			f.tensors = append(f.tensors, newTensor{Tensor: t, data: axis})
		}
		if !l.hasScale() || !d.writing.alphas || !hasScales && !d.writing.needsAlphas {
			continue
		}
		if err := l.sayScale(); err != nil {
			return err
		}
		t, data := l.alphaTensor(m)
		f.tensors = append(f.tensors, newTensor{
			Tensor: format.Tensor{Name: l.name + ".alpha", DType: t, Shape: []uint64{}}, data: data,
		})
	}
	tensors := f.plainTensors()
	if err := safefile.Check(tensors); err != nil {
		return err
	}
	source, err := SourceMetadata(ctx, f.src)
	if err != nil {
		return err
	}
	f.write = func(w io.Writer) error {
		metadata, err := d.writing.metadata(ctx, f, source)
		if err != nil {
			return err
		}
		return safefile.Write(ctx, w, tensors, metadata, f.reader(ctx))
	}
	return nil
}

// reader returns the function that reads the new tensors.
func (f *pairFile) reader(ctx context.Context) func(p []byte, i int, off int64) error {
	return func(p []byte, i int, off int64) error {
		t := &f.tensors[i]
		switch {
		case t.data != nil:
			copy(p, t.data[off:])
			return nil
		case t.factor.isWhole(f.src.Manifest()):
			return f.src.ReadBlobAt(p, t.factor.blocks[0].tensor, off)
		case f.last != i:
			content, err := t.factor.content(ctx, f.src)
			if err != nil {
				return err
			}
			f.last, f.content = i, content
		}
		copy(p, f.content[off:])
		return nil
	}
}

// plainTensors returns the tensors without their contents.
func (f *pairFile) plainTensors() []format.Tensor {
	tensors := make([]format.Tensor, len(f.tensors))
	for i := range f.tensors {
		tensors[i] = f.tensors[i].Tensor
	}
	return tensors
}

// indexBase returns the names and shapes of the base; nil if there is none.
func (o *CreateOptions) indexBase() (*naming.Base, naming.ShapeOf) {
	if o.Base == nil {
		return nil, nil
	}
	names, shapes := make([]string, len(o.Base)), make(map[string][]uint64)
	for i := range o.Base {
		names[i] = o.Base[i].Name
		shapes[names[i]] = o.Base[i].Shape
	}
	return naming.Index(names), func(name string) []uint64 { return shapes[name] }
}

// refuseRespelling says which modules have no name in a dialect.
func refuseRespelling(r *naming.Respelling, dialect string) error {
	const hint = "name the model that the adapter was trained on (CreateOptions.Base)"
	switch {
	case r.IsWhole():
		return nil
	case r.Absent != nil:
		s := r.Absent
		missing := slices.Concat(s.Missing, s.Absent, s.Ambiguous)
		for _, m := range s.Misfit {
			missing = append(missing, m.Name)
		}
		return fault.New(fault.Mismatch, "the base does not tell the names of %s: it lacks them, has them "+
			"in another shape, or has them twice", fault.List(missing, 3)).
			WithHint("name the base that the adapter was trained on")
	case r.Twice != nil:
		return fault.New(fault.Unsupported, "the adapter has a module twice, under two names: %s",
			fault.List(r.Twice, 3))
	case r.Several != nil:
		return fault.New(fault.Unsupported, "the names of the modules fit several architectures (%s), "+
			"which the dialect %s names differently", fault.List(r.Several, 5), dialect).WithHint(hint)
	case r.Nameless != nil:
		return fault.New(fault.Unsupported, "the dialect %s has no name for %s, by what is known of the "+
			"model", dialect, fault.List(r.Nameless, 3)).
			WithHint(hint + "; if the dialect keeps this part in a file of its own, convert it alone")
	case r.Partial != nil:
		return fault.New(fault.Unsupported, "%s becomes a part of a larger module in the dialect %s, and "+
			"nothing says how many rows the other parts have", fault.List(r.Partial, 3), dialect).
			WithHint(hint)
	}
	return fault.New(fault.Unsupported, "no table of an architecture knows the modules %s, so their names "+
		"in the dialect %s are unknown", fault.List(r.Unknown, 3), dialect).WithHint(hint)
}

// Remarks says what the Sink for path will change in the numbers of src, such as a scale that is
// rounded into a factor. A Sink of another package takes part if it has a method
// Remarks(context.Context, format.Source) ([]string, error).
func Remarks(
	ctx context.Context, path string, d Dialect, src format.Source, o CreateOptions,
) ([]string, error) {
	s, err := d.Create(path, o)
	if err != nil {
		return nil, err
	}
	if s, ok := s.(interface {
		Remarks(context.Context, format.Source) ([]string, error)
	}); ok {
		return s.Remarks(ctx, src)
	}
	return nil, nil
}

func (s *pairSink) Remarks(ctx context.Context, src format.Source) ([]string, error) {
	f, err := composePairs(ctx, s.dialect, src, &s.options)
	if err != nil {
		return nil, err
	}
	return f.remarks, nil
}
