package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/output"
	safefile "github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// peftSink writes a directory as PEFT saves it, or a file of weights with the other files beside
// it. A source that carries the header and the configuration of its source file is restored byte
// for byte. Any other source gets a new file and a new configuration.
type peftSink struct {
	path    string
	options CreateOptions
}

func (s *peftSink) Store(ctx context.Context, src format.Source) error {
	p, err := partsOf(ctx, src, &s.options)
	if err != nil {
		return err
	}
	if err := s.checkPlaces(ctx, p); err != nil {
		return err
	}
	o := output.DiskOptions{IsDir: !PEFTWritesFile(s.path), Replace: s.options.Replace}
	weights := ""
	if o.IsDir {
		o.Mode, weights = s.options.dirMode(), peftWeights
	} else {
		p.side = slices.DeleteFunc(p.side, func(f sideFile) bool { return !s.differs(f) }) // an identical file may stay
	}
	disk, err := output.NewDisk(s.path, o)
	if err != nil {
		return err
	}
	return storeTo(ctx, disk, src, func() error { return p.write(disk, weights, &s.options) })
}

// peftFiles writes the files of a directory of PEFT to an output.
type peftFiles struct {
	out     output.Output
	options CreateOptions
}

func (s *peftFiles) Store(ctx context.Context, src format.Source) error {
	p, err := partsOf(ctx, src, &s.options)
	if err != nil {
		return err
	}
	return p.write(s.out, peftWeights, &s.options)
}

// peftParts holds the files of an adapter.
type peftParts struct {
	weights      func(io.Writer) error
	weightsBytes int64 // a lower bound
	remarks      []string
	side         []sideFile
}

// write creates the files in an output, the weights under the given name. On disk the files beside
// the weights appear first, so the weights never stand beside another adapter's configuration.
func (p *peftParts) write(out output.Output, weights string, o *CreateOptions) error {
	info := output.Info{Name: weights, Mode: o.modeOf(peftWeights)}
	if err := writeFile(out, info, p.weights); err != nil {
		return err
	}
	for _, f := range p.side {
		if err := writeFile(out, output.Info{Name: f.name, Mode: o.modeOf(f.name)}, f.write); err != nil {
			return err
		}
	}
	return nil
}

func partsOf(ctx context.Context, src format.Source, o *CreateOptions) (*peftParts, error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	if len(m.Adapters) != 1 {
		return nil, fault.New(fault.Unsupported, "the source is a bundle of %d adapters, but PEFT's files hold one", len(m.Adapters)).
			WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	if err := refuseMegatron(&m.Adapters[0]); err != nil {
		return nil, err
	}
	config, err := attachment(src, format.PEFTConfig)
	if err != nil {
		return nil, err
	}
	card, err := attachment(src, format.ModelCard)
	if err != nil {
		return nil, err
	}
	var weights func(io.Writer) error
	var remarks []string
	isOfImages := IsOfImages(src)
	switch {
	case o.server() != nil:
		config, weights, remarks, err = composeServed(ctx, src, o)
	case isOfImages:
		config, weights, remarks, err = composeComponent(ctx, src, o)
	case o.Only != nil || o.FoldScale:
		err = fault.New(fault.Unsupported, "the adapter is of no image or video model that is known, and "+
			"CreateOptions.Only and CreateOptions.FoldScale are for these")
	case config == nil || m.Adapters[0].Dialect != "peft":
		config, weights, err = compose(ctx, src)
	case !hasAttachment(src, format.SourceHeader): // the source was a pickle, or several files
		if config, err = amendSaved(config, &m.Adapters[0]); err == nil {
			weights, err = keepKeys(ctx, src)
		}
	default:
		weights, err = restoreOr(ctx, src)
	}
	if err != nil {
		return nil, err
	}
	p := &peftParts{weights: weights, remarks: remarks, side: []sideFile{{format.PEFTConfig, config}}}
	if card != nil {
		p.side = append(p.side, sideFile{format.ModelCard, card})
	}
	for i := range m.Tensors {
		if isOfImages || o.server() != nil {
			break // of some of the components, or of other sizes
		}
		p.weightsBytes += m.Tensors[i].NBytes()
	}
	return p, nil
}

// Remarks says which scales are rounded into factors, and what changes for a server.
func (s *peftSink) Remarks(ctx context.Context, src format.Source) ([]string, error) {
	p, err := partsOf(ctx, src, &s.options)
	if err != nil {
		return nil, err
	}
	return p.remarks, nil
}

func (s *peftSink) Check(ctx context.Context, src format.Source) error {
	p := &peftParts{side: []sideFile{{name: format.PEFTConfig}}} // a file not made yet differs from an existing one
	if src != nil {
		var err error
		if p, err = partsOf(ctx, src, &s.options); err != nil {
			return err
		}
	}
	return s.checkPlaces(ctx, p)
}

// PeakBytes counts the check of the manifest, which takes as much as for a container. A restored
// file is copied in pieces. A new file takes each tensor as a whole, and the previous tensor may
// not be collected yet.
func (s *peftSink) PeakBytes(src format.Source) int64 {
	m := src.Manifest()
	need := format.WriterOptions{Workers: 1}.PeakBytes(m)
	isRestored := len(m.Adapters) == 1 && m.Adapters[0].Dialect == "peft" && hasAttachment(src, format.SourceHeader)
	switch {
	case s.options.server() != nil && len(m.Adapters) == 1:
		return need + servedBytes(m)
	case isRestored:
		return need
	}
	largest := int64(0)
	for i := range m.Tensors {
		largest = max(largest, m.Tensors[i].NBytes())
	}
	if IsOfImages(src) {
		return need + 6*largest // joined and widened
	}
	return need + 2*largest
}

// checkPlaces checks the output and, if it is a file, the files beside it.
func (s *peftSink) checkPlaces(ctx context.Context, p *peftParts) error {
	place := fileio.Place{
		Path: s.path, IsDir: !PEFTWritesFile(s.path), Replace: s.options.Replace, Inputs: s.options.Inputs, Bytes: p.weightsBytes,
		Files: []string{peftWeights}, Known: under(ctx, isPEFTDir), Kind: "an adapter of PEFT",
	}
	if !place.IsDir {
		place.Known = under(ctx, isPEFTFile)
	}
	for _, f := range p.side {
		place.Files = append(place.Files, f.name)
	}
	if err := errors.Join(place.Check(), ctx.Err()); err != nil || place.IsDir {
		return err
	}
	_, _, err := fileio.LocateOnDisk(s.path)
	isThere := err == nil
	for _, f := range p.side {
		if !s.differs(f) {
			continue
		}
		beside := fileio.Place{Path: siblingOf(s.path, f.name), Replace: s.options.Replace && isThere, Known: func(string) bool { return true }}
		for _, in := range s.options.Inputs {
			beside.Inputs = append(beside.Inputs, in)
			if _, file, err := fileio.LocateOnDisk(in); err == nil && file != "" {
				beside.Inputs = append(beside.Inputs, siblingOf(in, f.name))
			}
		}
		if err := beside.Check(); err != nil {
			var taken *OutputError
			if errors.As(err, &taken) && taken.Exists && !isThere {
				taken.Why, taken.Replaceable = "already exists and belongs to another adapter, but "+filepath.Base(s.path)+" needs its own", false
			}
			return err
		}
	}
	return nil
}

// differs reports whether a file beside the weights must be written.
func (s *peftSink) differs(f sideFile) bool {
	there, err := fileio.ReadFile(siblingOf(s.path, f.name), int64(len(f.content)))
	return err != nil || !bytes.Equal(there, f.content)
}

// isPEFTFile reports whether path is the file of weights of an adapter.
func isPEFTFile(ctx context.Context, path string) bool {
	in, err := lookAt(ctx, path)
	if err != nil {
		return false
	}
	defer in.close()
	return in.readTable() == nil && naming.AreOfAdapter(in.table.keys())
}

// isPEFTDir reports whether the directory at path holds an adapter.
func isPEFTDir(ctx context.Context, path string) bool {
	return onDisk(path).exists(format.PEFTConfig) || isPEFTFile(ctx, filepath.Join(path, peftWeights))
}

// under binds a question about a path to a context.
func under(ctx context.Context, ask func(context.Context, string) bool) func(string) bool {
	return func(path string) bool { return ask(ctx, path) }
}

// sideFile is a small file beside the weights.
type sideFile struct {
	name    string
	content []byte
}

func (f sideFile) write(w io.Writer) error {
	_, err := w.Write(f.content)
	return err
}

// PEFTWritesFile reports whether the PEFT dialect writes path as a file of weights, with
// adapter_config.json beside it, rather than as a directory.
func PEFTWritesFile(path string) bool { return strings.EqualFold(filepath.Ext(path), ".safetensors") }

// Restore writes the safetensors file that one adapter of a source was read from, byte for byte:
// the attached header, then the tensors in the order of their data (spec/FORMAT.md, section 12). It
// checks the header first and the SHA-256 of the whole file last. The bytes in w are the file only
// if the error is nil.
func Restore(ctx context.Context, w io.Writer, src format.Source, adapter int) error {
	m := src.Manifest()
	name := format.SourceHeader
	if len(m.Adapters) > 1 {
		name = m.Adapters[adapter].Name + "/" + name
	}
	at, err := findAttachment(m, name)
	if err != nil {
		return err
	}
	if at < 0 {
		return fault.New(fault.Unsupported, "the source file cannot be restored: the container carries no %s", name)
	}
	header := &blob{src: src, i: len(m.Tensors) + at, size: m.Attachments[at].NBytes}
	order, err := headerOrder(ctx, m, &m.Adapters[adapter], header)
	if err != nil {
		return err
	}
	h := sha256.New()
	both := io.MultiWriter(w, h)
	if err := copyBlob(ctx, both, header); err != nil {
		return err
	}
	for _, i := range order {
		if err := copyBlob(ctx, both, &blob{src: src, i: i, size: m.Tensors[i].NBytes()}); err != nil {
			return err
		}
	}
	if got, want := hex.EncodeToString(h.Sum(nil)), m.Attachments[at].SHA256; want != "" && got != want {
		return broken("R69", "the restored file has SHA-256 %s, the source file had %s", got, want)
	}
	return nil
}

func broken(rule, format string, args ...any) error {
	e := fault.New(fault.Corrupt, format, args...)
	e.Rule = rule
	return e
}

// headerOrder checks an attached header against the tensors of an adapter, and returns the tensors
// in the order of their data.
func headerOrder(ctx context.Context, m *format.Manifest, a *format.Adapter, header *blob) ([]int, error) {
	h, err := safetensors.ReadStart(ctx, header, header.size)
	switch {
	case header.err != nil:
		return nil, header.err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, broken("R67", "%s is not a safetensors header: %v", format.SourceHeader, err)
	}
	if h.DataOff != header.size {
		return nil, broken("R67", "%s has %d bytes, but its length field says %d", format.SourceHeader, header.size, h.DataOff)
	}
	tensors := a.Tensors()
	byName := make(map[string]int, len(tensors))
	for _, i := range tensors {
		byName[m.Tensors[i].Name] = i
	}
	if len(h.Tensors) != len(byName) {
		return nil, broken("R68", "%s has %d tensors, the adapter has %d", format.SourceHeader, len(h.Tensors), len(byName))
	}
	order := make([]int, 0, len(h.Tensors))
	for i := range h.Tensors {
		t := &h.Tensors[i]
		at, ok := byName[t.Name]
		if !ok || m.Tensors[at].DType != t.DType || !slices.Equal(m.Tensors[at].Shape, t.Shape) {
			return nil, broken("R68", "%s lists tensor %q, %v of shape %d, which the adapter does not have", format.SourceHeader, t.Name, t.DType, t.Shape)
		}
		order = append(order, at)
	}
	return order, nil
}

// blob is a tensor or an attachment of a source.
type blob struct {
	src  format.Source
	i    int
	size int64
	err  error // of the source
}

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), b.size-off)))
	if err := b.src.ReadBlobAt(p[:n], b.i, off); err != nil {
		b.err = err
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func copyBlob(ctx context.Context, w io.Writer, b *blob) error {
	buf := make([]byte, min(b.size, 1<<20))
	for off := int64(0); off < b.size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), b.size-off)]
		if err := b.src.ReadBlobAt(p, b.i, off); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// compose returns a configuration made from the layers, and the writer of the weights that belong
// to it.
func compose(ctx context.Context, src format.Source) (config []byte, weights func(io.Writer) error, err error) {
	config, names, err := peftFrom(src.Manifest())
	if err != nil {
		return nil, nil, err
	}
	weights, err = serialise(ctx, src, names)
	return config, weights, err
}

// keepKeys returns the writer of the weights under their present keys, which fit the attached
// configuration.
func keepKeys(ctx context.Context, src format.Source) (func(io.Writer) error, error) {
	names := make(map[int]string)
	for i := range src.Manifest().Tensors {
		names[i] = src.Manifest().Tensors[i].Name
	}
	return serialise(ctx, src, names)
}

// serialise returns the writer of a safetensors file with the given tensors and keys.
func serialise(ctx context.Context, src format.Source, names map[int]string) (func(io.Writer) error, error) {
	metadata, err := metadataOf(src)
	if err != nil {
		return nil, err
	}
	order := slices.Sorted(maps.Keys(names))
	tensors := make([]format.Tensor, len(order))
	for k, i := range order {
		tensors[k] = src.Manifest().Tensors[i]
		tensors[k].Name = names[i]
	}
	if err := safefile.Check(tensors); err != nil {
		return nil, err
	}
	read := func(p []byte, k int, off int64) error { return src.ReadBlobAt(p, order[k], off) }
	return func(w io.Writer) error {
		metadata, err := renewHashes(ctx, metadata, tensors, read)
		if err != nil {
			return err
		}
		return safefile.Write(ctx, w, tensors, metadata, read)
	}, nil
}
