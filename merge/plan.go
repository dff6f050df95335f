package merge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/internal/undo"
)

// Adapter is an adapter to merge or to remove.
type Adapter struct {
	// Source stays open until the plan has run; the caller closes it. nil is an error.
	Source format.Source
	// Name is used in messages, such as the adapter's path. Its last element goes into the stamp.
	Name string
	// Weight is ω: 1 applies the adapter as trained. 0 is refused, since it would change nothing.
	Weight float64
}

// Options control a run. They never change the weights, except Reading, the five that lift a
// refusal (Again, AnyBase, AllowNonFinite, GrowVocabulary and AddTensors), and those for a
// quantised base (OutDType, Dequantise, Requantise, Stochastic and Seed) and BaseAs. Tool and the
// adapters' names go into the stamp in the header of each changed file and into an undo record, and
// so into the bytes of these files.
type Options struct {
	Reading
	Workers int // goroutines; 0 means one per processor, and one more to wait for writes
	// BlockBytes is the number of bytes of the base that a worker holds at a time; 0 means 1 MiB.
	// It is a hint: with undo records, tensors are processed in whole blocks of the records.
	BlockBytes     int
	Replace        bool // replace an existing output
	Again          bool // merge an adapter again that the base's stamp already lists
	AnyBase        bool // skip the check that the adapter was made for this base
	GrowVocabulary bool // add rows to embedding and head where an adapter has more
	// AddTensors adds tensors that an adapter saves whole and that the base lacks or has in another
	// shape.
	AddTensors     bool
	AllowNonFinite bool // accept NaN and infinity in factors, and weights that become infinite
	// OutDType is the dtype of quantised weights that the merge decodes: BF16, F16 or F32. 0 means
	// F16 for weights that were F16 before, and BF16 for all others.
	OutDType dtype.Type
	// Dequantise decodes every quantised weight of the base. Without it, weights that no adapter
	// changes keep their codes.
	Dequantise bool
	// Requantise gives the elements of quantised weights new codes in place of decoding the
	// weights. Where a value is a code times a scale (FP8, INT8, INT4 and others of
	// compressed-tensors, MXFP4, NVFP4), the scales stay, and each element gets the code whose
	// value is nearest to the exact sum, of two the even one. Blocks of GGUF (Q8_0, Q4_0, Q4_1,
	// Q5_0, Q5_1, MXFP4) are encoded as llama-quantize encodes the exact sums rounded to float32.
	// Weights in other schemes are decoded. The run fails if the share of ΔW that is
	// kept is not from 0.9 to 1.1, see RecodedReport, unless AcceptLoss is set.
	Requantise bool
	AcceptLoss bool // accept any loss by Requantise
	// Stochastic makes Requantise choose at random between the codes below and above a sum, in
	// weights of FP8 and Q8_0, so that the mean of the value is right. Seed chooses the numbers:
	// the same seed gives the same bytes.
	Stochastic bool
	Seed       int64
	// BaseAs is "nf4" to merge into the base as QLoRA's training saw it: each linear weight, except
	// output heads, has the values of its codes in NF4 of bitsandbytes, with blocks of 64 and
	// without double quantisation. "" takes the weights as they are.
	BaseAs string
	// BaseAsSkip lists the modules whose weights BaseAs leaves as they are, as
	// llm_int8_skip_modules of transformers: names, or whole parts of names such as "lm_head" or
	// "vision_tower". nil stands for the output heads; a list that does not name them quantises
	// them, too.
	BaseAsSkip []string
	// Progress is called from several goroutines with the number of bytes just written. At the end
	// of a successful run the sum is Plan.OutputBytes. nil reports nothing.
	Progress func(bytes int64)
	Tool     string // name and version of the calling program, for the stamp
	// Undo receives the undo record (spec/UNDO.md), valid only if Run returns nil; nil writes none.
	Undo     io.Writer
	UndoFile string // path of an undo record that appears together with the output; "" writes none
}

// Plan is a merge that is ready to run, once. Planning reads headers only.
type Plan struct {
	ran      atomic.Bool
	base     *checkpoint.Checkpoint
	stored   *checkpoint.Checkpoint // base as the files have it, before the plan adds or drops tensors
	own      io.Closer              // closed with the plan; nil if the caller opened the base
	removed  removal                // removed first
	adapters []Adapter              // merged next
	ids      []string               // content ids of adapters; nil until they are needed
	options  Options
	targets  []*target // sorted by file and offset
	warnings []string  // about the base and the adapters
	effects  []string  // warnings about the output
	files    []*outFile
	side     map[string][]byte // new contents of files beside the weights
	shaped   *resolve.Shaped   // differences between base and the files on disk
	decoding *decoding         // nil for a base without quantised weights
}

// removal lists the merges that a plan takes out first.
type removal struct {
	adapters []Adapter // in the order of the records and of their merges
	ids      []string  // content ids of adapters
	records  []*Record // the latest merge first; nil subtracts
	notes    []string
}

// is reports whether the plan removes anything.
func (r *removal) is() bool { return len(r.adapters) > 0 }

// wantsRecord reports whether to write an undo record.
func (o *Options) wantsRecord() bool { return o.Undo != nil || o.UndoFile != "" }

// Close closes the base if the plan opened it by its path. A base that the caller opened stays
// open.
func (p *Plan) Close() error {
	if p.own == nil {
		return nil
	}
	return p.own.Close()
}

// Warnings lists facts that a user should know before the plan runs: those of InputWarnings, then
// those about the output.
func (p *Plan) Warnings() []string { return slices.Concat(p.warnings, p.effects) }

// InputWarnings lists the warnings about the base and the adapters, and how they are read. They are
// true also if the plan's output is only compared with something, or never made.
func (p *Plan) InputWarnings() []string { return p.warnings }

// resolved converts adapters for package resolve.
func resolved(adapters []Adapter) []resolve.Adapter {
	all := make([]resolve.Adapter, len(adapters))
	for i, a := range adapters {
		all[i] = resolve.Adapter(a)
	}
	return all
}

// unchanged returns an error if the base, an adapter or a record has changed since it was opened.
func unchanged(p *Plan) error {
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

// Tied chooses what to do when an adapter changes only one of two tied tensors, the output head and
// the input embedding. It is a string; the zero value refuses.
type Tied = resolve.Tied

// The choices for tied tensors.
const (
	Untie Tied = resolve.Untie // make the head a tensor of its own, and set tie_word_embeddings in config.json to false
	Fold  Tied = resolve.Fold  // change the one tensor, and so both ends
)

// Reading settles how to apply an adapter whose files are ambiguous. The zero value follows the
// files and refuses ambiguous ones. A value that a field does not list is an error. An undo record
// remembers the Reading, for the removal.
type Reading struct {
	ExpertInput       int  // dimension of square experts that lora_A reads, 1 or 2; 0 follows the adapter
	LinearInput       int  // dimension of square Conv1D weights that lora_A reads, 1 or 2, where the base does not tell; 0 refuses these
	ExpertTurns       bool // gate and up of an expert lie in turns in gate_up_proj, where the model's type says so
	ExpertsSlowest    bool // lora_B of stacked experts stores expert after expert, unlike PEFT's
	OutProjTwice      bool // add the update of nn.MultiheadAttention.out_proj twice, as PEFT up to 0.21 does
	RecomputeResidual bool // remove PiSSA's or OLoRA's residual, computed again, from the original base
	Tied              Tied // handling of a change to one of two tied tensors; "" refuses

	// Only lists the components of an image or video model to change, as diffusers calls them:
	// "unet" or "transformer", "text_encoder", "text_encoder_2". An adapter's layers for others are
	// left out. Empty stands for all.
	Only []string
}

// ComponentNames lists the names of components that Reading.Only can have, as diffusers calls them.
// "unet", "transformer" and "prior" each stand for the first denoiser of a model.
func ComponentNames() []string { return naming.ComponentNames() }

// check refuses values that no field knows.
func (r Reading) check() error {
	for _, name := range r.Only {
		if known := ComponentNames(); !slices.Contains(known, name) {
			return fmt.Errorf("merge: Options.Only has %q, want one of %s", name, strings.Join(known, ", "))
		}
	}
	isDimension := func(n int) bool { return n >= 0 && n <= 2 }
	switch {
	case r.Tied != "" && r.Tied != Untie && r.Tied != Fold:
		return fmt.Errorf("merge: Options.Tied is %q, want %q, %q, or %q to refuse", r.Tied, Untie, Fold, "")
	case !isDimension(r.ExpertInput):
		return fmt.Errorf("merge: Options.ExpertInput is %d, want 1 or 2, or 0 to follow the adapter",
			r.ExpertInput)
	case !isDimension(r.LinearInput):
		return fmt.Errorf("merge: Options.LinearInput is %d, want 1 or 2, or 0 to refuse",
			r.LinearInput)
	}
	return nil
}

// Check refuses values that no field takes, and fields that exclude each other, whatever the base
// and the adapters are. Open and New begin with it.
func (o Options) Check() error { return errors.Join(o.Reading.check(), o.checkQuantised()) }

// checkQuantised refuses values that Options.OutDType and Options.BaseAs do not list, and options
// for a quantised base that do not fit together.
func (o *Options) checkQuantised() error {
	if o.Requantise || o.AcceptLoss || o.Stochastic {
		if err := checkRequantise(o); err != nil {
			return err
		}
	}
	switch o.OutDType {
	case dtype.Invalid, dtype.BF16, dtype.F16, dtype.F32:
		if o.BaseAs != "" || o.BaseAsSkip != nil {
			return checkBaseAs(o)
		}
		return nil
	}
	return fmt.Errorf("merge: Options.OutDType is %v, want BF16, F16 or F32, or 0", o.OutDType)
}

// checkRequantise refuses options that do not fit Options.Requantise.
func checkRequantise(o *Options) error {
	without := func(option, why string) error {
		return fault.New(fault.Unsupported, "%s and Options.Requantise exclude each other: %s", option, why).
			WithHint("leave one of them out")
	}
	switch {
	case !o.Requantise && (o.AcceptLoss || o.Stochastic):
		return fault.New(fault.Unsupported, "Options.AcceptLoss and Options.Stochastic are for Options.Requantise, which is not set").
			WithHint("set Options.Requantise, too")
	case !o.Requantise:
		return nil
	case o.Dequantise:
		return without("Options.Dequantise", "one decodes every weight, the other keeps codes")
	case o.BaseAs != "":
		return without("Options.BaseAs", "it decodes the weights")
	case o.AllowNonFinite:
		return without("Options.AllowNonFinite", "most codes have no NaN and no infinity")
	}
	return nil
}

// planner builds a Plan.
type planner struct {
	*Plan
	names    *resolve.Base      // the base as package resolve sees it
	targets  map[string]*target // by tensor name
	restored map[int]restored   // headers that records give back, by the number of the file
	isCut    bool               // base lacks tensors or rows that removed merges added
}

// warn adds a warning about the base or an adapter.
func (p *planner) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// announce adds a warning about the output.
func (p *planner) announce(format string, args ...any) {
	p.effects = append(p.effects, fmt.Sprintf(format, args...))
}

// target is a base tensor that changes, with its place in the files.
type target struct {
	*resolve.Change
	ref   checkpoint.Ref
	exact *checkpoint.Tensor // the values of a decoded weight in F64; nil for a plain one
	coded *coded             // of a quantised weight that gets new codes; nil for any other
	undo  []step             // merges to remove first, the latest one first
}

// coded is a quantised weight that gets new codes. Its target is the tensor of the codes.
type coded struct {
	weight *target // the weight, in the order of its codes; its dtype is that of the sums
	codes  *checkpoint.Codes
	dither *checkpoint.Dither // nil to take the nearest code
}

// changes reports whether the plan merges something into the tensor.
func (t *target) changes() bool {
	return len(t.Terms)+len(t.Deltas) > 0 || t.Replace != nil || t.Rows != nil
}

// bandRows returns the number of rows in a band.
func (t *target) bandRows() int64 {
	nRows, _ := t.Matrix()
	return nRows / int64(t.NBands)
}

// step removes one merge from a tensor.
type step struct {
	record *undo.Record   // nil without a record: the step subtracts
	name   string         // the record's name
	tensor int            // the tensor's number in the record
	shape  []uint64       // of the tensor before the merge
	terms  []resolve.Term // the merge's terms, negated, for the prediction
}

// outFile is a weight file of the output: the base's file, with a new header if it has targets.
type outFile struct {
	in      *checkpoint.File
	before  restored // the header after the removals
	shift   int64    // distance that the data move
	targets []*target

	hasHeader bool // the output has a header of its own; see newHeader
	isStamped bool // with a stamp of this merge
}

func (f *outFile) size() int64 { return f.in.Size + f.shift }

// nameOf returns the file's name within the checkpoint, or "" for a single-file checkpoint.
func (p *Plan) nameOf(f *outFile) string {
	if !p.base.IsDir {
		return ""
	}
	return f.in.Name
}

// restored is a file's header after the removals.
type restored struct {
	identity undo.Header
	header   *checkpoint.Header // nil if the file does not change
}

// Record is an open undo record (spec/UNDO.md).
type Record struct {
	Name   string // used in messages, such as its path
	record *undo.Record

	identity fileio.Identity // of the record's file
}

// fileOf finds file i of a record in the checkpoint, or returns −1. Two single files match whatever
// their names are: users rename them.
func fileOf(base *checkpoint.Checkpoint, r *undo.Record, i int) int {
	if len(r.Files) == 1 && len(base.Files) == 1 {
		return 0
	}
	return slices.IndexFunc(base.Files, func(f *checkpoint.File) bool { return f.Name == r.Files[i].Name })
}

// OutputBytes returns the size of the weight files that Run writes, without the other files of a
// directory.
func (p *Plan) OutputBytes() int64 {
	var n int64
	for _, f := range p.files {
		n += f.size()
	}
	return n
}

// unknownID is as long as a content id.
var unknownID = strings.Repeat("0", 64)

// identify computes the content ids of the adapters, which takes as long as reading all of them.
// Only a base with stamps, or a second adapter to compare, needs them before the plan runs.
func identify(ctx context.Context, p *Plan) (err error) {
	if p.ids == nil {
		p.ids, err = contentIDs(ctx, p.adapters)
	}
	return err
}

// contentIDs computes the content ids of adapters.
func contentIDs(ctx context.Context, adapters []Adapter) (ids []string, err error) {
	for _, a := range adapters {
		id, err := format.AdapterID(ctx, a.Source)
		if err != nil {
			return nil, fault.InFile(err, a.Name)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
