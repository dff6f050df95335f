package merge

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/undo"
)

// Run writes the merged checkpoint to out, a file or directory like the base, and the undo record
// to Options.UndoFile. Both appear complete or not at all: Run writes under hidden names beside
// them, waits for the disk, and then renames. Each worker holds a few blocks and the factors in
// use, whatever the size of the base. A plan runs once; a second call returns an error, even if the
// first call failed.
func (p *Plan) Run(ctx context.Context, out string) (*Report, error) {
	if p.ran.Swap(true) {
		return nil, errRan
	}
	if err := p.CheckOutput(out); err != nil {
		return nil, err
	}
	disk, err := p.disk(out)
	if err != nil {
		return nil, err
	}
	defer disk.Abort()
	var record *recordFile
	if p.options.UndoFile != "" {
		if record, err = newRecordFile(disk, p.options.UndoFile, p.base); err != nil {
			return nil, err
		}
	}
	return p.runTo(ctx, disk, record)
}

// RunTo writes to any Output, such as output.Memory. Options.UndoFile must be empty: only Run can
// make a file appear together with the checkpoint. Options.Undo receives the record before RunTo
// commits the output. A failed run aborts the output.
func (p *Plan) RunTo(ctx context.Context, out output.Output) (*Report, error) {
	defer out.Abort()
	if p.ran.Swap(true) {
		return nil, errRan
	}
	if p.options.UndoFile != "" {
		return nil, errors.New("merge: an undo record in a file of its own needs an output path; use Options.Undo")
	}
	return p.runTo(ctx, out, nil)
}

var errRan = errors.New("merge: the plan has run already; open another one")

// runTo writes the checkpoint to out and the undo record, if wanted, to record and to Options.Undo.
// record may be nil.
func (p *Plan) runTo(ctx context.Context, out output.Output, record *recordFile) (*Report, error) {
	r, err := p.newRun(ctx, out)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if len(p.removed.records) > 0 {
		if err := checkRest(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	totals := r.total()
	report := newReport(p, totals)
	report.addDecoded(p)
	if p.options.BaseAs != "" {
		if report.BaseAs, err = measureBaseAs(ctx, p, report.Layers); err != nil {
			return nil, err
		}
	}
	if created := report.NonFiniteAfter - report.NonFiniteBefore; created > 0 && !p.options.AllowNonFinite {
		return nil, fault.New(fault.Check, "%s would become infinite or NaN, in %s", fault.Count(created, "finite weight"), fault.List(report.created, 3)).
			WithHint("%s", whyInfinite(p, report.created))
	}
	if p.options.Requantise {
		if report.Recoded, err = newRecodedReport(p, totals); err != nil {
			return nil, err
		}
	}
	// Writing the record keeps the processor busy while the files wait for the disk.
	last := []func(context.Context) error{r.settle, func(ctx context.Context) (err error) {
		if r.tools.recording == nil {
			return nil
		}
		if report.Undo, err = r.tools.recording.write(ctx, recordWriter(p, record)); err != nil {
			return err
		}
		return record.close()
	}}
	if err := parallel.For(ctx, len(last), len(last), func(_, i int) error { return last[i](ctx) }); err != nil {
		return nil, err
	}
	report.BytesWritten += r.sideBytes
	if err := errors.Join(ctx.Err(), unchanged(p)); err != nil {
		return nil, err
	}
	return report, out.Commit()
}

// whyInfinite is the hint for finite weights that became infinite in these tensors.
func whyInfinite(p *Plan, names []string) string {
	if p.options.Requantise {
		return "the scales cannot hold the merged weights; lower the weight, or merge without Options.Requantise"
	}
	isF16 := func(name string) bool {
		w := p.decoding.weight(name)
		return w != nil && w.isDecoded && w.as == dtype.F16
	}
	if slices.ContainsFunc(names, isF16) {
		return "F16 ends at 65504; set Options.OutDType=bf16, lower the weight, or set Options.AllowNonFinite"
	}
	return "the output's dtype cannot hold the merged weights; lower the weight, or set Options.AllowNonFinite"
}

// CheckOutput reports whether Run can write to out and to Options.UndoFile. It checks that they do
// not exist or may be replaced, that they are neither an input nor each other, that their
// directories are writable, and that the disk has room.
func (p *Plan) CheckOutput(out string) error {
	out = filepath.Clean(out)
	inputs := inputsOf(p)
	place := fileio.Place{
		Path: out, IsDir: p.base.IsDir, Replace: p.options.Replace, Inputs: inputs, Files: outputNames(p),
		Known: isCheckpoint, Kind: "a checkpoint", Bytes: diskBytes(p),
	}
	if err := place.Check(); err != nil {
		return err
	}
	if ext := strings.ToLower(filepath.Ext(out)); p.base.IsDir && (ext == ".safetensors" || ext == ".gguf") {
		why := "the base is a directory and so is the output"
		if checkpoint.IsSplit(p.base) {
			why = "the base is in several files, and the output is a directory of files with their names"
		}
		return &OutputError{Path: out, Why: "has the name of a file, but " + why}
	}
	if is, misnamed := p.base.Misnames(out); misnamed {
		return &OutputError{Path: out, Why: "has the name of another format, but the output is " + is}
	}
	if p.options.UndoFile == "" {
		return nil
	}
	record := fileio.Place{
		Path: p.options.UndoFile, Replace: p.options.Replace, Inputs: inputs, Apart: []string{out},
		Known: isRecord, Kind: "an undo record",
	}
	return record.Check()
}

// OutputError is an output path that Run cannot use. It wraps fs.ErrExist if the path exists. Its
// fields:
//
//	Path, Why   string // "output PATH WHY" is the message
//	Replaceable bool   // Options.Replace would allow it
//	Exists      bool   // something is there
type OutputError = fileio.OutputError

// SpaceError is a disk without enough room, found before anything is written. Its fields:
//
//	Path       string
//	Need, Free int64 // bytes
type SpaceError = fileio.SpaceError

// inputsOf lists the paths that the merge reads.
func inputsOf(p *Plan) []string {
	paths := p.base.Paths()
	for _, a := range slices.Concat(p.removed.adapters, p.adapters) {
		paths = append(paths, a.Name) // a name need not be a path
	}
	for _, r := range p.removed.records {
		paths = append(paths, r.Name)
	}
	return paths
}

// outputNames lists the files of an output directory.
func outputNames(p *Plan) []string {
	names := slices.Clone(p.base.Side)
	for _, f := range p.files {
		names = append(names, f.in.Name)
	}
	return names
}

// isCheckpoint reports whether path holds a checkpoint rather than an adapter.
func isCheckpoint(path string) bool {
	c, err := checkpoint.Open(context.Background(), path)
	if err != nil {
		return false
	}
	defer c.Close()
	return !naming.AreOfAdapter(c.Names())
}

// isRecord reports whether path holds an undo record.
func isRecord(path string) bool {
	src, err := format.Open(path)
	if err != nil {
		return false
	}
	defer src.Close()
	return undo.Is(src)
}

// diskBytes returns the least disk space that the output takes. Holes take none.
func diskBytes(p *Plan) (n int64) {
	for _, f := range p.files {
		n += f.size() - f.in.HoleBytes()
	}
	for _, name := range p.base.Side {
		if in, err := p.base.OpenSide(name); err == nil {
			n += in.Size - fileio.HoleBytes(in.ReaderAt)
			in.Close()
		}
	}
	return n
}

// disk creates the output at a path.
func (p *Plan) disk(out string) (*output.Disk, error) {
	o := output.DiskOptions{IsDir: p.base.IsDir, Replace: p.options.Replace}
	if p.base.IsDir {
		mode, err := p.base.Dir.Mode()
		if err != nil {
			return nil, err
		}
		o.Mode, o.Names = mode|0o700, outputNames(p)
	}
	return output.NewDisk(out, o)
}
