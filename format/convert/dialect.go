package convert

import (
	"context"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
)

// Options says how to open an adapter. The zero value refuses weights that it cannot account for.
type Options struct {
	// Without lists files of weights to ignore, as slash-separated paths within the directory being
	// opened.
	Without []string
	// With lists files of weights that were trained whole, safetensors or pickles: each tensor
	// replaces the base's tensor of its name. The names may begin with base_model.model. or
	// module., and may have the segments of PEFT's modules_to_save. Open takes paths on disk,
	// OpenFS names in the fs.FS.
	With []string
	// AllowBeside opens the adapter even if its directory holds weights that are not part of it.
	// WeightsBeside then lists them.
	AllowBeside bool
	// Opaque opens a safetensors file or a pickle of tensors in any dialect, known or not, without
	// its meaning: every tensor is carried, and nothing can be applied.
	Opaque bool
	// From names the dialect to open the adapter in, such as kohya, if its content fits several or
	// none; "" recognises it by its content. A .lora file is always opened as one.
	From string
	// Prefix replaces the beginnings of the names of modules, where they are not those of the base
	// and no rule finds the translation. Of several prefixes the one with the longest From that
	// fits a name counts. One that fits no module is an error. An output keeps the new names.
	Prefix []Prefix
	// Alpha and Scale say what an adapter without a configuration and without alphas leaves open:
	// lora_alpha, divided by the rank of each layer, or the scale itself. 0 leaves it to the rule
	// of the dialect. For an adapter that says its scale, either is an error.
	Alpha, Scale float64
	// EnableLoRA says which projections of a fused weight an adapter of loralib's MergedLinear
	// changes, as in the training: true, false, true for q and v of q, k and v. It holds for all
	// such layers. nil leaves it open, and merge refuses them.
	EnableLoRA []bool
	// MaxManifestBytes bounds the manifest of a .lora file; 0 means 16 MiB (format.ReaderOptions).
	MaxManifestBytes int64
}

// Dialect is a way of storing adapters. Several goroutines may call its methods at once.
type Dialect interface {
	// Name is the dialect's name in options and reports: "peft".
	Name() string
	// Recognise reports whether the content of the input is an adapter of the dialect. It also
	// returns true for a damaged one; Open then names the damage.
	Recognise(in *Input) bool
	// Open describes an input that Recognise has accepted. It reads only headers and
	// configurations. The source may read from the input later: the input stays open as long as the
	// source. The set may add notes to the manifest before it returns the source.
	Open(ctx context.Context, in *Input, o Options) (format.Source, error)
	// Create returns a Sink that writes one adapter to path. It writes nothing before Store. A
	// dialect that can only be read returns an error of kind format.ErrUnsupported. The Sink may
	// have a method Check(context.Context, format.Source) error; see the function Check.
	Create(path string, o CreateOptions) (format.Sink, error)
	// Writes reports whether files with this ending are written in the dialect by default. ext is
	// lower-case and includes the dot; "" stands for a directory. See Dialects.For.
	Writes(ext string) bool
}

// OutputDialect is a dialect that can be written to any output. Its Create is short: output.NewDisk
// makes an output from a path, which appears completely or not at all.
type OutputDialect interface {
	Dialect
	// CreateTo returns a Sink whose Store creates the files of an adapter in out and closes them.
	// The caller of Store commits or aborts the output.
	CreateTo(out output.Output, o CreateOptions) (format.Sink, error)
}

// readOnly is the part that all dialects have which are only read.
type readOnly struct{ name string }

func (d readOnly) Name() string       { return d.name }
func (d readOnly) String() string     { return d.name }
func (d readOnly) Writes(string) bool { return false }
func (d readOnly) isReadOnly() bool   { return true }

func (d readOnly) Create(string, CreateOptions) (format.Sink, error) {
	return nil, fault.New(fault.Unsupported, "the dialect %s cannot be written", d.name).
		WithHint("name an output ending in .lora, or a directory for PEFT")
}

// CreateOptions says how to write an adapter. The zero value is ready to use.
type CreateOptions struct {
	Replace bool     // replace an existing output of the same kind
	Inputs  []string // paths that the source was made from; the output must not be one of them
	Workers int      // goroutines that compress; 0 means one per processor
	// MaxManifestBytes bounds the manifest of a .lora file; 0 means 16 MiB (format.WriterOptions).
	MaxManifestBytes int64
	// ChunkLog2 and ByLayer are the chunk size and the order of a .lora file
	// (format.WriterOptions).
	ChunkLog2 int
	ByLayer   bool
	// FoldScale lets the factors of each layer carry its scale, for dialects and programs that know
	// no scale, if the dialect has such files.
	FoldScale bool
	// Only names the components of an image or video model to write, as diffusers calls them; nil
	// means all. It is for the dialects of these models, and for PEFT's directory, which holds one.
	Only []string
	// Base lists the tensors of the model that the adapter is for. It gives names to modules that
	// no table of this package knows. nil means that the tables decide; the data are never read.
	Base []format.Tensor
	// BaseConfig is the config.json of that model, which GGUF needs for the size of its attention
	// heads and the number of its experts, and Loader for the kind of model. nil means that it is
	// unknown.
	BaseConfig []byte
	// Architecture is what llama.cpp calls the architecture of that model, such as "llama"; ""
	// takes it from BaseConfig, or else from the GGUF file that the adapter comes from.
	Architecture string
	// Loader is the server of language models that PEFT's files are for: they have one rank, by
	// zeros, and the factors carry the scale. nil, or any other program, changes nothing.
	Loader *Loader
	// DType is the dtype of the factors in a GGUF file: F32, F16 or BF16. The zero value means that
	// of the GGUF file that the adapter comes from, if it has one, and otherwise F32.
	DType   dtype.Type
	Tool    string // the program's name, for the provenance; "" keeps the source's
	Version string
}
