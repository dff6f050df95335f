package rank

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/naming"
)

// ExtractOptions say what to extract and how. One of Rule and Budget is needed; the zero value of
// the rest is ready.
type ExtractOptions struct {
	Rule    Rule             // chooses the rank of every layer; nil where Budget is set
	Budget  int64            // bytes of factors, spent on the singular values with most energy per byte over all layers
	MaxRank int              // with Budget: the most that one layer gets; 0 is 64
	Include []*regexp.Regexp // names of tensors to extract; none is all
	Exclude []*regexp.Regexp // names to leave out
	DType   dtype.Type       // of the factors; 0 is F32
	Only    bool             // leave out what low rank cannot hold, in place of carrying it beside
	Strict  bool             // fail if anything is left out or carried
	PEFT    bool             // name and hold everything as PEFT does, and refuse what it cannot hold
	// Output is where the adapter is to go: until the source is closed, its factors wait in the
	// scratch space of that output (output.NewScratch). nil is a temporary file of the system.
	Output  output.Output
	SVD     Options
	Workers int
	Layer   func(tensor string, bytes int64) // called when a tensor is done; nil is silent
	Tool    string                           // name and version of the program, for the provenance
}

// Extraction is a plan to turn a fine-tuned checkpoint into an adapter. It has read headers only.
type Extraction struct {
	base, tuned *checkpoint.Checkpoint
	own         []*Checkpoint // that were opened for this extraction, and are closed with it
	options     ExtractOptions
	pairs       []pair // present in both, same shape, both floats
	skipped     []Skipped
	left        []leftOut          // of skipped, what counts in the error
	renamed     string             // how the names of tuned are read, "" as they are
	peft        *forPEFT           // where it is for PEFT
	others      map[string]located // of dtypes that are no floats: the tuned ones, by the base's names

	baseEnds, tunedEnds ends
}

// Close closes the checkpoints of an extraction that was opened by their paths. Those that the
// caller opened stay open.
func (e *Extraction) Close() error {
	var errs []error
	for _, c := range e.own {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (e *Extraction) skip(name, format string, args ...any) {
	e.skipped = append(e.skipped, Skipped{Tensor: name, Why: fmt.Sprintf(format, args...)})
}

// selects reports whether a tensor is to be extracted, by its name.
func (o *ExtractOptions) selects(name string) bool {
	matches := func(re *regexp.Regexp) bool { return re.MatchString(name) }
	return (len(o.Include) == 0 || slices.ContainsFunc(o.Include, matches)) && !slices.ContainsFunc(o.Exclude, matches)
}

type extracting struct {
	*Extraction
	spool    *spool
	adapter  format.Adapter
	report   *ExtractReport
	ranks    map[string]int // of the tensors, where a budget has chosen them
	cheapest int64          // bytes of the cheapest singular value that a budget could buy
	tensors  []string       // that were extracted as layers
	whole    float64        // ‖Δ‖² of what is carried whole
	energy   float64        // of all that changed

	parameters map[int]string // of layers: the parameter that the factors are for, where the module does not tell
}

// ends are the input embedding and the output head of a checkpoint, as merge finds them.
type ends struct {
	of *checkpoint.Checkpoint
	naming.Ends
}

// leftOut is a tensor that changed, or may have changed, and is not extracted.
type leftOut struct {
	skipped     int      // its place in the list of what is skipped
	base, tuned *located // nil where that checkpoint has nothing to compare with
}

// forPEFT is what an extraction for PEFT knows of the model.
type forPEFT struct {
	model *naming.PEFTModel
	disk  map[string]string  // parameter in memory → tensor of the base, the first if there are more
	all   map[string]located // parameter that is one tensor → the tuned one, or the base's
	embed string             // the input embedding that is tied to others, "" if there is none
	twins []string           // the modules that share its weight, nil where they are not known
	saved map[string]bool    // the parameters that are saved with their modules
}
