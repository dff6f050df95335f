package convert

import (
	"context"
	"path"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// MLX returns the dialect of mlx-lm: a directory with adapters.safetensors, or adapters.npz until
// March 2024, and its adapter_config.json. The keys are the names of mlx-lm's modules, which are
// nearly those of transformers, and lora_a, lora_b and m. mlx-vlm's A and B of before May 2026 are
// read, too.
//
// The factors of a linear layer are the transposes of PEFT's: lora_a is n×r, lora_b r×m, and those
// of an embedding of V tokens V×r and r×m. The factors of stacked experts are not: lora_a is E×r×n,
// or (E·r)×n until October 2025, and lora_b E×m×r. A layer of an opened adapter has A and B of
// PEFT's shapes, and the name of the experts in transformers.
//
// The scale of all layers is the configuration's; see mlxConfig.setScale.
//
// A new directory has adapters.safetensors and adapter_config.json. One rank and one scale are for
// all layers there: smaller ranks are padded with zeros, and factors carry what the scale cannot
// say.
func MLX() Dialect { return mlxDialect{} }

type mlxDialect struct{}

func (mlxDialect) Name() string       { return "mlx" }
func (mlxDialect) String() string     { return "mlx" }
func (mlxDialect) Writes(string) bool { return false } // a directory is PEFT's unless the user says so

// mlxTails are the endings of keys in mlx-lm, and in mlx-vlm.
var mlxTails = map[string]format.Role{
	".lora_a": roleA, ".lora_b": roleB, ".m": roleMagnitude, ".A": roleA, ".B": roleB,
}

// mlxKey returns the module and the role of a key; the role is "" for another tensor.
func mlxKey(name string) (module string, role format.Role) {
	module, leaf := naming.Module(name), naming.Leaf(name)
	if role := mlxTails["."+leaf]; role != "" && module != "" {
		return module, role
	}
	return name, ""
}

// Recognise looks for keys that mlx-lm alone writes. Those of mlx-vlm are A and B, and those of a
// whole fine-tune the model's: with them the configuration decides.
func (mlxDialect) Recognise(in *Input) bool {
	if in.readTable() != nil || in.table.gguf != nil {
		return false
	}
	nKnown, ofLM := 0, 0
	for _, t := range in.table.tensors {
		if _, role := mlxKey(t.Name); role != "" {
			nKnown++
		}
		if strings.HasSuffix(t.Name, ".lora_a") || strings.HasSuffix(t.Name, ".lora_b") {
			ofLM++
		}
	}
	isMost := nKnown > 0 && 2*nKnown >= len(in.table.tensors) && !naming.HaveBaseLayers(in.table.keys())
	if isMost && ofLM > 0 {
		return true
	}
	c, err := mlxConfigBeside(in)
	return err == nil && c != nil && (isMost && c.isOfVLM() || c.FineTuneType == fullTuning)
}

func (d mlxDialect) Open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	if err := in.readTable(); err != nil {
		return nil, err
	}
	config, err := mlxConfigBeside(in)
	if err != nil {
		return nil, err
	}
	if err := config.setScale(&o); err != nil {
		return nil, fault.InFile(err, in.Path())
	}
	f := &tensorFile{table: mlxTable(in.table), sign: config.sign(in.table)}
	f.manifest.Tensors = f.table.tensors
	f.manifest.Provenance.Source = path.Base(in.name)
	for _, name := range []string{format.ModelCard, format.PEFTConfig} { // ascending, as the format wants
		content, err := in.ReadFile(name, maxSideBytes)
		if err != nil {
			return nil, err
		}
		if content != nil {
			f.attach(name, content)
		}
	}
	f.manifest.Notes = append(f.manifest.Notes, f.table.notes()...)
	r := &mlxReader{collector: f.collector(), config: config}
	a, err := r.adapter(ctx)
	if err != nil {
		return nil, err
	}
	f.manifest.Adapters = []format.Adapter{a}
	return f, nil
}

// mlxTable returns a table with A and B in PEFT's shapes.
func mlxTable(t *table) *table {
	experts := make(map[string][]uint64) // the shapes of B of stacked experts
	for i := range t.tensors {
		x := &t.tensors[i]
		if module, role := mlxKey(x.Name); role == roleB && len(x.Shape) == 3 {
			experts[module] = x.Shape
		}
	}
	all := t.transposed(func(x *format.Tensor) bool {
		module, role := mlxKey(x.Name)
		return (role == roleA || role == roleB) && experts[module] == nil
	})
	for i := range all.tensors {
		x := &all.tensors[i]
		module, role := mlxKey(x.Name)
		b := experts[module]
		if role == roleA && b != nil && len(x.Shape) == 2 && b[0] > 0 && b[2] > 0 && x.Shape[0]/b[2] == b[0] && x.Shape[0]%b[2] == 0 {
			x.Shape = []uint64{b[0], b[2], x.Shape[1]} // one expert after the other
		}
	}
	all.lost = "a .lora file keeps the adapter and not its MLX file: converting back to the dialect mlx writes the same factors"
	return all
}
