package merge

import (
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Adapter is one adapter to merge.
type Adapter struct {
	Source format.Source // stays open until the plan has run; the caller closes it
	Name   string        // how messages and the stamp call it, such as its path
	Weight float64       // ω; 1 applies it as it was trained. Zero is refused: a merge of it would change nothing
}

// Options change how a merge runs, never its bytes, but for Reading, and for those that allow what
// is refused without them: Again, AnyBase, AllowNonFinite, GrowVocabulary and AddTensors. Where
// there are undo records, tensors are cut into whole blocks of theirs, whatever BlockBytes says.
type Options struct {
	Reading
	Workers        int               // goroutines; 0 is one per processor
	BlockBytes     int               // bytes of the base that a worker holds at a time; 0 is 1 MiB
	Replace        bool              // replace an existing output
	Again          bool              // merge an adapter that the base says it already has
	AnyBase        bool              // merge into a base that is not the one an adapter was made for
	GrowVocabulary bool              // add rows to embedding and head where an adapter has more
	AddTensors     bool              // add tensors that an adapter saves whole and the base lacks, or has in another shape
	AllowNonFinite bool              // go on where factors are not finite, or a finite weight becomes infinite
	Progress       func(bytes int64) // called from several goroutines with the bytes just written; nil is silent
	Tool           string            // name and version of the program, for the stamp
	Undo           io.Writer         // gets the undo record of the merge (spec/UNDO.md); nil writes none. It is one if Run returns nil
	UndoFile       string            // the place of an undo record that appears together with the output; "" writes none
}

// Plan is a merge that is ready to run, once. It has read headers only.
type Plan struct {
	ran      atomic.Bool
	base     *checkpoint.Checkpoint
	own      io.Closer // that was opened for this plan, and is closed with it; nil where the caller opened it
	removed  removal   // what is taken out first
	adapters []Adapter // what is put in then
	ids      []string  // the content ids of these
	options  Options
	targets  []*target // in the order of files and of data
	warnings []string
	files    []*outFile
	side     map[string][]byte // files beside the weights that change
	shaped   *resolve.Shaped   // how the base differs from what is on the disk
}

// removal is what a plan takes out before it puts anything in.
type removal struct {
	adapters []Adapter // in the order of the records and of their merges
	ids      []string  // their content ids
	records  []*Record // the latest merge first; none subtracts
	notes    []string
}

// is reports whether anything is taken out.
func (r *removal) is() bool { return len(r.adapters) > 0 }

// wantsRecord reports whether an undo record is to be written.
func (o *Options) wantsRecord() bool { return o.Undo != nil || o.UndoFile != "" }

// Close closes the base of a plan that was opened by its path. One that the caller opened stays
// open.
func (p *Plan) Close() error {
	if p.own == nil {
		return nil
	}
	return p.own.Close()
}

// Warnings are what a user should know before the plan runs.
func (p *Plan) Warnings() []string { return p.warnings }

// resolved are adapters as package resolve wants them.
func resolved(adapters []Adapter) []resolve.Adapter {
	all := make([]resolve.Adapter, len(adapters))
	for i, a := range adapters {
		all[i] = resolve.Adapter(a)
	}
	return all
}

// unchanged reports whether the base, the adapters and the records are what they were when they
// were opened.
func (p *Plan) unchanged() error {
	if err := p.base.Unchanged(); err != nil {
		return err
	}
	for _, a := range slices.Concat(p.removed.adapters, p.adapters) {
		if err := fileio.Unchanged(a.Source); err != nil {
			return err
		}
	}
	for _, r := range p.removed.records {
		if err := r.identity.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Tied says what becomes of an output head that the base has tied to its input embedding, when an
// adapter changes one of the two.
type Tied string

// What can become of it; the zero value refuses.
const (
	Untie Tied = "untie" // the head becomes a tensor of its own, and config.json says so
	Fold  Tied = "fold"  // the change is made to the one tensor, and so to both
)

// Reading says how adapters are applied where their files do not. The zero value lets the files
// decide, and refuses what they leave open. An undo record remembers it, so that what was put in is
// taken out as it was put in.
type Reading struct {
	ExpertInput       int  // the dimension of square experts that lora_A reads, 1 or 2; 0 lets the adapter decide
	LinearInput       int  // the dimension of square Conv1D weights that lora_A reads, 1 or 2, where the base does not tell; 0 refuses them there
	ExpertsSlowest    bool // lora_B of stacked experts has one expert after the other, which PEFT does not write
	OutProjTwice      bool // add the update of out_proj of nn.MultiheadAttention twice, as PEFT up to 0.21 does
	RecomputeResidual bool // take out of the original base what PiSSA and OLoRA have taken out, computed again
	Tied              Tied // what to do with tied ends of which one changes; "" refuses
}

func (r Reading) resolved() resolve.Reading {
	return resolve.Reading{
		ExpertInput: r.ExpertInput, LinearInput: r.LinearInput, ExpertsSlowest: r.ExpertsSlowest, OutProjTwice: r.OutProjTwice,
		RecomputeResidual: r.RecomputeResidual, Tied: resolve.Tied(r.Tied),
	}
}

// planner makes a plan.
type planner struct {
	*Plan
	names   *resolve.Base      // what resolving knows of the base
	targets map[string]*target // by the names of their tensors
}

func (p *planner) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// target is a tensor of the base that changes, and where it lies.
type target struct {
	*resolve.Change
	ref  checkpoint.Ref
	undo []step // what is taken out before that, the latest merge first
}

// changes reports whether something is put into the tensor.
func (t *target) changes() bool { return len(t.Terms) > 0 || t.Replace != nil || t.Rows != nil }

// bandRows is the height of a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.Matrix()
	return nRows / int64(t.NBands)
}

// step is one merge that is taken out of a tensor again.
type step struct {
	record *undo.Record   // nil where there is none, and the subtraction has to do
	name   string         // of the record
	tensor int            // in the record
	terms  []resolve.Term // what the prediction adds: the merge's terms with their signs turned
}

// outFile is one weight file of the output: the base's, with another header where it has targets.
type outFile struct {
	in      *checkpoint.File
	before  restored // its header when what is taken out is out
	header  []byte   // in full, length included; nil where the file's own stays as it is
	shift   int64    // how far the data move
	targets []*target
}

func (f *outFile) size() int64 { return f.in.Size + f.shift }

// nameOf is the name of a file within the checkpoint; one that is a file itself has none.
func (p *Plan) nameOf(f *outFile) string {
	if !p.base.IsDir {
		return ""
	}
	return f.in.Name
}

// blockRows is how many rows of a target are worked on at a time: with records, whole blocks of all
// of them.
func (p *Plan) blockRows(t *target) int64 {
	nRows, nCols := t.Matrix()
	if nRows == 0 || nCols == 0 {
		return 1
	}
	elements := nCols
	for i := range t.undo {
		if s := &t.undo[i]; s.record != nil {
			elements = multipleOfBoth(elements, s.record.Tensors[s.tensor].Block, nRows*nCols)
		}
	}
	if p.options.wantsRecord() && t.changes() {
		elements = multipleOfBoth(elements, recordBlock(t), nRows*nCols)
	}
	if elements > nCols {
		return elements / nCols
	}
	return min(nRows, max(1, p.blockBytes()/(nCols*int64(t.ref.Tensor.DType.Size()))))
}

// multipleOfBoth is the least common multiple of a and b, or most if that is less.
func multipleOfBoth(a, b, most int64) int64 {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	if b/x > most/a {
		return most
	}
	return min(most, a*(b/x))
}

// blockBytes is how much of the base a worker holds at a time.
func (p *Plan) blockBytes() int64 {
	if p.options.BlockBytes > 0 {
		return int64(p.options.BlockBytes)
	}
	return defaultBlockBytes
}

// defaultBlockBytes is how much of the base a worker holds at a time, and a block of an undo
// record.
const defaultBlockBytes = 1 << 20

// recordBlock is how many elements of a tensor a block of the undo record has.
func recordBlock(t *target) int64 {
	_, nCols := t.Matrix()
	return max(1, defaultBlockBytes/max(1, nCols*int64(t.DType.Size()))*nCols, nCols)
}

// restored is the header that a file had before what is taken out was merged.
type restored struct {
	identity undo.Header
	header   *checkpoint.Header // nil for a file that does not change
}

// Record is an undo record (spec/UNDO.md), opened for reading.
type Record struct {
	Name   string // how messages call it, such as its path
	record *undo.Record

	identity fileio.Identity // of the file that it is in
}

// fileOf finds file i of a record among those of the checkpoint, or returns −1. Where both have
// one, it is that, whatever its name is by now.
func fileOf(base *checkpoint.Checkpoint, r *undo.Record, i int) int {
	if len(r.Files) == 1 && len(base.Files) == 1 {
		return 0
	}
	return slices.IndexFunc(base.Files, func(f *checkpoint.File) bool { return f.Name == r.Files[i].Name })
}

// OutputBytes is the size of everything that Run writes, but for the other files of a directory.
func (p *Plan) OutputBytes() int64 {
	var n int64
	for _, f := range p.files {
		n += f.size()
	}
	return n
}
