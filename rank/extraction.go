package rank

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/naming"
)

// ExtractOptions choose what an extraction keeps. Either Rule or Budget must be set; the other zero
// values are defaults. OpenExtraction and NewExtraction refuse values outside of the ranges below.
type ExtractOptions struct {
	// Rule chooses the rank of every layer: a FixedRank, an EnergyShare, a MaxError, a NoiseFloor,
	// or a rule of your own. It is nil if Budget is set.
	Rule Rule
	// ConvRank is the rank of convolutions whose kernel has more than one place. At 0, Rule chooses
	// it as for every layer. It needs a Rule.
	ConvRank int
	// Budget is the number of bytes of factors to spend, over all layers, on the singular values
	// with the most energy per byte. It is 0 if Rule is set.
	Budget  int64
	MaxRank int              // with Budget: largest rank of a layer; 0 means 64
	Include []*regexp.Regexp // names of tensors to extract; none means all
	Exclude []*regexp.Regexp // names to leave out
	DType   dtype.Type       // of the factors: F32, F16 or BF16; 0 means F32
	// Only leaves out the tensors that factors cannot represent, instead of carrying them whole.
	Only   bool
	Strict bool // fail if any tensor is left out or carried whole
	PEFT   bool // use PEFT's names and layout, and refuse changes that PEFT cannot represent
	// Images keeps what the dialects of image models hold: factors of linear layers and
	// convolutions, in denoisers and text encoders. Other changes are left out and listed.
	Images bool
	// Path is the future path of the adapter, a file or a directory. A hidden file beside it holds
	// the factors until the source is closed. It is "" if Output is set. If both are zero, a
	// temporary file holds them.
	Path string
	// Output is the adapter's future output. Its scratch space (output.NewScratch) holds the
	// factors until the source is closed. It is nil if Path is set.
	Output  output.Output
	SVD     Options // of every decomposition, but for its Workers
	Workers int     // goroutines; 0 means one per processor
	// Layer is called for each finished tensor, from the goroutine of Run; nil reports nothing.
	Layer func(tensor string, bytes int64)
	Tool  string // name and version of the calling program, for the provenance
}

// Extraction is a plan to turn a fine-tuned checkpoint into an adapter. Planning reads headers
// only.
type Extraction struct {
	base, tuned *checkpoint.Checkpoint
	own         []io.Closer // closed with the extraction
	options     ExtractOptions
	pairs       []pair // in both, with equal shapes and float dtypes
	skipped     []Skipped
	left        []leftOut          // skipped tensors that count in the error
	warnings    []string           // from the headers alone
	peft        *forPEFT           // nil unless Options.PEFT
	others      map[string]located // tuned tensors without a float dtype, by the base's names

	baseEnds, tunedEnds ends
	twins               *naming.Twins // of two image or video models; nil for any others
	byModule            bool          // a merge finds the adapter of an image model by its modules
}

// Close closes the checkpoints if the extraction opened them by their paths. Checkpoints that the
// caller opened stay open.
func (e *Extraction) Close() error {
	var errs []error
	for _, c := range e.own {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (e *Extraction) skip(name, format string, args ...any) {
	e.skipped = append(e.skipped, Skipped{
		Tensor: name, Why: fmt.Sprintf(format, args...), Bytes: bytesOf(e, name),
	})
}

// carriesNone reports whether no tensor is carried whole.
func (o *ExtractOptions) carriesNone() bool { return o.Only || o.Images }

// bytesOf returns the size of a tensor in the tuned checkpoint or in the base.
func bytesOf(e *Extraction, name string) int64 {
	if e.peft != nil {
		name = cmp.Or(e.peft.disk[name], name)
	}
	for _, c := range []*checkpoint.Checkpoint{e.tuned, e.base} {
		if ref, ok := c.Lookup(name); ok {
			return ref.Tensor.NBytes
		}
	}
	return 0
}

// selects reports whether Include and Exclude select a tensor.
func (o *ExtractOptions) selects(name string) bool {
	matches := func(re *regexp.Regexp) bool { return re.MatchString(name) }
	return (len(o.Include) == 0 || slices.ContainsFunc(o.Include, matches)) && !slices.ContainsFunc(o.Exclude, matches)
}

type extracting struct {
	*Extraction
	spool    *spool
	room     room // of Δ
	adapter  format.Adapter
	report   *ExtractReport
	ranks    map[string]int // per tensor, chosen by a budget
	cheapest int64          // price of the cheapest singular value under a budget
	tensors  []string       // extracted as layers
	whole    float64        // ‖Δ‖² of the tensors carried whole
	energy   float64        // ‖Δ‖² of all changes

	parameters map[int]string // per layer: the parameter that the factors change, if the module has several
}

// ends are the input embedding and the output head of a checkpoint, found as in a merge.
type ends struct {
	of *checkpoint.Checkpoint
	naming.Ends
}

// leftOut is a tensor that changed, or may have changed, and is not extracted.
type leftOut struct {
	skipped     int      // index in the list of skipped tensors
	base, tuned *located // nil if that checkpoint has no counterpart
}

// forPEFT is the model as an extraction for PEFT sees it.
type forPEFT struct {
	model *naming.PEFTModel
	disk  map[string]string  // parameter in memory → first tensor of the base
	all   map[string]located // parameter that is one tensor → the tuned tensor, or the base's
	embed string             // tied input embedding, or ""
	twins []string           // modules that share its weight; nil if unknown
	saved map[string]bool    // parameters that PEFT saves with their modules
}
