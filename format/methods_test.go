package format_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// zeros is a tensor of F32 zeros.
func zeros(shape ...uint64) format.Data {
	n := uint64(4)
	for _, d := range shape {
		n *= d
	}
	return format.Bytes(dtype.F32, make([]byte, n), shape...)
}

type tensors = map[format.Role]format.Data

// TestMethodsNeedTheirRolesAndShapes gives each row of the table in spec/METHODS.md, section 2,
// once as it should be, and with one fault.
func TestMethodsNeedTheirRolesAndShapes(t *testing.T) {
	type of = format.Role
	hadamard := func() tensors {
		return tensors{"w1_a": zeros(6, 2), "w1_b": zeros(2, 9), "w2_a": zeros(6, 2), "w2_b": zeros(2, 9)}
	}
	tucker := func() tensors {
		return tensors{
			"w1_a": zeros(2, 6), "w1_b": zeros(2, 5), "t1": zeros(2, 2, 3, 3),
			"w2_a": zeros(2, 6), "w2_b": zeros(2, 5), "t2": zeros(2, 2, 3, 3),
		}
	}
	whole := func() tensors { return tensors{"w1": zeros(2, 3), "w2": zeros(4, 5, 3, 3)} }
	thin := func() tensors {
		return tensors{"w1_a": zeros(3, 2), "w1_b": zeros(2, 4), "w2_a": zeros(5, 2), "w2_b": zeros(2, 36)}
	}
	core := func() tensors {
		return tensors{"w1": zeros(2, 3), "w2_a": zeros(2, 5), "w2_b": zeros(2, 7), "t2": zeros(2, 2, 3)}
	}
	vector := func() tensors { return tensors{"vector": zeros(4)} }
	with := func(x tensors, role of, d format.Data) tensors { x[role] = d; return x }
	without := func(x tensors, role of) tensors { delete(x, role); return x }
	for _, c := range []struct {
		what  string
		kind  format.Kind
		rank  int
		parts tensors
		rule  string
	}{
		{"LoHa", format.Hadamard, 2, hadamard(), ""},
		{"LoHa with cores", format.Hadamard, 2, tucker(), ""},
		{"LoKr of whole matrices", format.Kronecker, 1, whole(), ""},
		{"LoKr of thin products", format.Kronecker, 2, thin(), ""},
		{"LoKr with a core", format.Kronecker, 2, core(), ""},
		{"IA³ of outputs", format.OutputScaling, 1, vector(), ""},
		{"IA³ of inputs", format.InputScaling, 1, vector(), ""},
		{"an alpha beside", format.InputScaling, 1, with(vector(), "alpha", zeros()), ""},
		{"a factor is missing", format.Hadamard, 2, without(hadamard(), "w2_b"), "R133"},
		{"one core of two", format.Hadamard, 2, without(tucker(), "t2"), "R134"},
		{"no left matrix", format.Kronecker, 1, without(whole(), "w1"), "R133"},
		{"two left matrices", format.Kronecker, 2, with(thin(), "w1", zeros(3, 4)), "R133"},
		{"a stray factor", format.Kronecker, 1, with(whole(), "w1_a", zeros(2, 1)), "R133"},
		{"A beside", format.OutputScaling, 1, with(vector(), "A", zeros(1, 1)), "R133"},
		{"A and B", format.OutputScaling, 1, tensors{"A": zeros(1, 1), "B": zeros(1, 1)}, "R133"},
		{"another rank", format.Hadamard, 3, hadamard(), "R134"},
		{"different outputs", format.Hadamard, 2, with(hadamard(), "w2_a", zeros(7, 2)), "R134"},
		{"different inputs", format.Hadamard, 2, with(hadamard(), "w2_b", zeros(2, 8)), "R134"},
		{"different kernels", format.Hadamard, 2, with(tucker(), "t2", zeros(2, 2, 3, 1)), "R134"},
		{"a core without kernel", format.Kronecker, 2, with(core(), "t2", zeros(2, 2)), "R134"},
		{"two ranks", format.Kronecker, 2, with(thin(), "w1_b", zeros(3, 4)), "R134"},
		{"no element", format.Kronecker, 1, with(whole(), "w1", zeros(2, 0)), "R134"},
		{"a vector with two dimensions", format.OutputScaling, 1, tensors{"vector": zeros(1, 4)}, ""},
		{"inputs with their kernel", format.Hadamard, 2, with(hadamard(), "w2_b", zeros(2, 3, 3)), ""},
		{"a number", format.OutputScaling, 1, tensors{"vector": zeros()}, "R134"},
		{"a rank without factors", format.Kronecker, 2, whole(), "R134"},
	} {
		x := format.NewBuilder("")
		x.Method("m", c.kind, "f", c.rank, 1, c.parts)
		_, err := x.Source()
		var f *format.Error
		switch {
		case c.rule == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.rule != "" && (!errors.As(err, &f) || f.Rule != c.rule):
			t.Errorf("%s: error %v, want %s", c.what, err, c.rule)
		}
	}
}

func TestCoresAndMagnitudesAreChecked(t *testing.T) {
	conv := func(a, b, core format.Data) *format.Builder {
		x := format.NewBuilder("")
		x.Conv("m", 2, 1, a, b).Role(format.RoleCore, format.FeatureTucker, core)
		return x
	}
	a, b := zeros(2, 5, 1, 1), zeros(6, 2, 1, 1)
	for what, c := range map[string]struct {
		x    *format.Builder
		rule string
	}{
		"right":            {conv(a, b, zeros(2, 2, 3, 3)), ""},
		"no kernel":        {conv(a, b, zeros(2, 2)), "R135"},
		"fewer dimensions": {conv(a, b, zeros(2, 2, 3)), "R135"},
		"another rank":     {conv(a, b, zeros(2, 3, 3, 3)), "R135"},
		"a kernel in A":    {conv(zeros(2, 5, 3, 3), b, zeros(2, 2, 3, 3)), "R135"},
		"empty":            {conv(a, b, zeros(2, 2, 0, 3)), "R135"},
		"no input":         {conv(zeros(2, 0, 1, 1), b, zeros(2, 2, 3, 3)), "R135"},
	} {
		_, err := c.x.Source()
		var f *format.Error
		if c.rule == "" && err != nil || c.rule != "" && (!errors.As(err, &f) || f.Rule != c.rule) {
			t.Errorf("%s: error %v, want %q", what, err, c.rule)
		}
	}
	x := format.NewBuilder("")
	l := x.Linear("m", 1, 1, zeros(1, 4), zeros(4, 1)).Magnitude(zeros(4))
	l.Role(format.RoleInputMagnitude, format.FeatureInputMagnitude, zeros(4))
	if _, err := x.Source(); err == nil || !strings.Contains(err.Error(), "R136") {
		t.Errorf("magnitudes of outputs and inputs: error %v, want R136", err)
	}
}

// TestMethodsHaveMinorVersion2: readers of 1.1 must refuse them.
func TestMethodsHaveMinorVersion2(t *testing.T) {
	minor := func(add func(x *format.Builder)) byte {
		x := format.NewBuilder("")
		add(x)
		src, err := x.Source()
		if err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if _, err := format.Write(t.Context(), &file, src, format.WriterOptions{}); err != nil {
			t.Fatal(err)
		}
		again, err := format.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()), format.ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(again.Manifest().Notes); n > 0 {
			t.Errorf("notes %q", again.Manifest().Notes)
		}
		return file.Bytes()[18]
	}
	if n := minor(func(x *format.Builder) {
		x.Method("m", format.OutputScaling, format.FeatureScaling, 1, 1, tensors{"vector": zeros(4)})
	}); n != 2 {
		t.Errorf("a layer of a method: minor version %d, want 2", n)
	}
	if n := minor(func(x *format.Builder) { x.Difference("m.bias", zeros(4)) }); n != 2 {
		t.Errorf("a difference: minor version %d, want 2", n)
	}
	if n := minor(func(x *format.Builder) { x.Linear("m", 1, 1, zeros(1, 4), zeros(4, 1)) }); n != 0 {
		t.Errorf("a linear layer: minor version %d, want 0", n)
	}
}
