package convert_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/output"
)

// claims is the table in the documentation of the package. Each column behind "scale" is one that
// the contract test tries.
var claims = []struct {
	dialect, files, names, scale string
	has                          map[string]string // by column: "yes", or nothing for a refusal
}{
	{"lora", "written", "any", "any", all(columns...)},
	{"gguf", "written", "llama.cpp's", "one alpha", all("embed")},
	{"mlx", "written", "dotted", "one scale", all("DoRA", "embed")},
	{"peft", "written", "dotted", "any", all("conv", "DoRA", "bias", "embed")},
	{"kohya", "written", "flat", "alphas", all("conv", "DoRA", "DoRA-in", "LyCORIS", "diff")},
	{"diffusers", "written", "diffusers", "header", all("conv", "DoRA", "bias")},
	{"comfyui", "written", "authors'", "alphas", all("conv", "DoRA", "DoRA-in", "LyCORIS", "diff")},
	{"xlabs", "read", "authors'", "1", nil},
	{"cloneofsimo", "read", "numbers", "1", nil},
	{"loralib", "read", "dotted", "by option", nil},
	{"megatron", "read", "Megatron's", "by option", nil},
	{"torchtune", "read", "torchtune's", "beside", nil},
	{"mistral", "read", "authors'", "beside", nil},
}

var columns = []string{"conv", "DoRA", "DoRA-in", "bias", "embed", "LyCORIS", "diff"}

func all(has ...string) map[string]string {
	m := make(map[string]string)
	for _, column := range has {
		m[column] = "yes"
	}
	return m
}

// claimsTable formats the claims as the documentation has them.
func claimsTable() string {
	rows := [][]string{append([]string{"dialect", "files", "names", "scale"}, columns...)}
	for _, c := range claims {
		row := []string{c.dialect, c.files, c.names, c.scale}
		for _, column := range columns {
			has := c.has[column]
			if has == "" {
				has = "-"
			}
			row = append(row, has)
		}
		rows = append(rows, row)
	}
	var b strings.Builder
	for _, row := range rows {
		line := "//\t"
		for i, cell := range row {
			width := 0
			for _, other := range rows {
				width = max(width, len(other[i]))
			}
			line += fmt.Sprintf("%-*s  ", width, cell)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// TestDocHasTheTableOfClaims word for word.
func TestDocHasTheTableOfClaims(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), claimsTable()) {
		t.Errorf("doc.go lacks the table\n%s", claimsTable())
	}
	var names []string
	for _, c := range claims {
		names = append(names, c.dialect)
	}
	if !slices.Equal(names, convert.Default().Names()) {
		t.Errorf("the table has the dialects %q, want %q", names, convert.Default().Names())
	}
}

// inMemorySource is an adapter of one layer.
type inMemorySource struct {
	manifest format.Manifest
	data     [][]byte
}

func (s *inMemorySource) Manifest() *format.Manifest { return &s.manifest }
func (s *inMemorySource) Close() error               { return nil }
func (s *inMemorySource) ReadBlobAt(p []byte, i int, off int64) error {
	copy(p, s.data[i][off:])
	return nil
}

// add adds a tensor of numbers that differ from each other.
func (s *inMemorySource) add(name string, shape ...uint64) int {
	n, _ := dtype.NElements(shape)
	p := make([]byte, 4*n)
	for i := range int(n) {
		dtype.Store(dtype.F32, p, i, float64(i+1)/8)
	}
	s.manifest.Tensors = append(s.manifest.Tensors, format.Tensor{Name: name, DType: dtype.F32, Shape: shape})
	s.data = append(s.data, p)
	return len(s.data) - 1
}

// module is a linear layer that only SD 1 has.
const module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

// ofQwen are modules of a language model that stand for those of SD 1.
var ofQwen = map[string]string{plain: "model.layers.0.self_attn.q_proj", "embed": "model.embed_tokens"}

// plain is the column of an adapter that every written dialect must carry.
const plain = "plain"

// sourceOf makes an adapter of SD 1 that has what a column names.
func sourceOf(column string) *inMemorySource {
	s := new(inMemorySource)
	l := format.Layer{Module: module,
		Kind: format.Linear, Rank: 2, Alpha: 3, Scaling: format.AlphaOverR, Roles: map[format.Role]int{}}
	a := format.Adapter{Method: format.MethodLoRA}
	require := func(f format.Feature, method format.Method) {
		a.Requires, a.Method = []format.Requirement{{Feature: f, Where: l.Module}}, method
	}
	switch column {
	case "LyCORIS":
		l.Kind = format.Hadamard
		for _, role := range []format.Role{format.RoleW1A, format.RoleW2A} {
			l.Roles[role] = s.add(string(role), 6, 2)
		}
		for _, role := range []format.Role{format.RoleW1B, format.RoleW2B} {
			l.Roles[role] = s.add(string(role), 2, 4)
		}
		require(format.FeatureHadamard, format.OtherMethod("lycoris"))
	case "diff":
		i := s.add("difference", 6, 4)
		a.Beside = []format.Beside{{Action: format.Difference, Target: l.Module + ".weight", Tensor: i}}
		require(format.FeatureDifference, format.OtherMethod("lycoris"))
		a.Requires[0].Where = l.Module + ".weight"
	case "conv":
		l.Kind, l.Module = format.Conv, "unet.up_blocks.3.resnets.0.conv1"
		l.Roles[format.RoleA], l.Roles[format.RoleB] = s.add("A", 2, 4, 3, 3), s.add("B", 6, 2, 1, 1)
		require(format.FeatureConvolution, format.MethodLoRA)
	default:
		l.Roles[format.RoleA], l.Roles[format.RoleB] = s.add("A", 2, 4), s.add("B", 6, 2)
	}
	switch column {
	case "DoRA":
		l.Roles[format.RoleMagnitude] = s.add("magnitude", 6)
		require(format.FeatureDoRA, format.MethodDoRA)
	case "DoRA-in":
		l.Roles[format.RoleInputMagnitude] = s.add("magnitude", 1, 4)
		require(format.FeatureInputMagnitude, format.MethodLoRA)
	case "bias":
		l.Roles[format.RoleBias] = s.add("bias", 6)
		require(format.FeatureLoRABias, format.MethodLoRA)
	case "embed":
		l.Kind, l.Module = format.Embedding, "text_encoder.text_model.embeddings.token_embedding"
	}
	if len(l.Roles) > 0 {
		a.Layers = []format.Layer{l}
	}
	s.manifest.Adapters = []format.Adapter{a}
	return s
}

// through writes an adapter in a dialect and opens the new files.
func through(t *testing.T, src format.Source, d convert.Dialect) (format.Source, error) {
	t.Helper()
	var m output.Memory
	sink, err := convert.CreateTo(&m, d, convert.CreateOptions{Architecture: "qwen2"})
	if err != nil {
		return nil, err
	}
	if err := format.Copy(t.Context(), sink, src); err != nil {
		return nil, err
	}
	files, at := make(fstest.MapFS), "a"
	for name, content := range m.Files() {
		files["a/"+name] = &fstest.MapFile{Data: content}
	}
	if one := m.Files()[""]; one != nil {
		at = "a.safetensors"
		files = fstest.MapFS{at: &fstest.MapFile{Data: one}}
	}
	back, err := convert.OpenFS(t.Context(), files, at, convert.Options{})
	if err != nil {
		t.Fatalf("%s cannot read what it has written: %v", d.Name(), err)
	}
	t.Cleanup(func() { back.Close() })
	return back, nil
}

// contents lists what an adapter does: the kinds, scales, roles and numbers of its layers, and its
// differences. A dialect may name modules and tensors as it likes, and an alpha says the scale.
func contents(t *testing.T, src format.Source) (all []string) {
	t.Helper()
	m := src.Manifest()
	numbers := func(i int) string {
		p := make([]byte, m.Tensors[i].NBytes())
		if err := src.ReadBlobAt(p, i, 0); err != nil {
			t.Fatal(err)
		}
		x := make([]float64, m.Tensors[i].Elements())
		dtype.Widen64(x, m.Tensors[i].DType, p)
		return fmt.Sprint(x)
	}
	for _, l := range m.Adapters[0].Layers {
		all = append(all, fmt.Sprintf("%s rank %d scale %v", l.Kind, l.Rank, l.Scale()))
		for role, i := range l.Roles {
			if role != format.RoleAlpha {
				all = append(all, string(role)+" "+numbers(i))
			}
		}
	}
	for _, b := range m.Adapters[0].Beside {
		all = append(all, string(b.Action)+" "+numbers(b.Tensor))
	}
	slices.Sort(all)
	return all
}

// TestDialectsCarryWhatTheyClaim: an adapter with what a dialect claims to carry comes back from
// its files, and again from a container, with the same layers, scales and numbers. What it does not
// claim to carry it refuses by name.
func TestDialectsCarryWhatTheyClaim(t *testing.T) {
	for _, c := range claims {
		d := convert.Default().Named(c.dialect)
		for _, column := range append([]string{plain}, columns...) {
			src := sourceOf(column)
			if (c.dialect == "gguf" || c.dialect == "mlx") && (column == plain || column == "embed") {
				src.manifest.Adapters[0].Layers[0].Module = ofQwen[column]
			}
			back, err := through(t, src, d)
			switch isClaimed := c.has[column] != "" || column == plain && c.has != nil; {
			case isClaimed && err != nil:
				t.Errorf("%s with %s: %v", c.dialect, column, err)
			case isClaimed:
				equalLines(t, c.dialect+" with "+column, contents(t, back), contents(t, src))
				again, err := through(t, back, convert.LoRA())
				if err != nil {
					t.Errorf("%s with %s, to a container: %v", c.dialect, column, err)
					continue
				}
				equalLines(t, c.dialect+" with "+column+", from a container", contents(t, again), contents(t, src))
			case !errors.Is(err, format.ErrUnsupported):
				t.Errorf("%s with %s: %v, want a refusal", c.dialect, column, err)
			default:
				named := src.manifest.Adapters[0]
				where := c.dialect
				if c.has != nil {
					where = module
				}
				if c.has != nil && len(named.Layers) > 0 {
					where = named.Layers[0].Module
				}
				if !strings.Contains(err.Error(), where) {
					t.Errorf("%s with %s: %v, want %q named", c.dialect, column, err, where)
				}
			}
		}
	}
}
