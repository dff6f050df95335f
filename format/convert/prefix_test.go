package convert_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
)

// prefixedIn writes an adapter with a module under decoder, one under decoder.extra, and a bias.
func prefixedIn(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const a, b, p = "lora_A.weight", "lora_B.weight", "base_model.model."
	testkit.WriteAdapter(t, dir, 2, 2, ones(
		p+"decoder.layers.0.q."+a, p+"decoder.layers.0.q."+b, p+"decoder.extra.layers.0.q."+a, p+"decoder.extra.layers.0.q."+b,
		p+"head.proj.bias")...)
	return dir
}

// names lists the modules of the layers and the tensors that are replaced.
func names(src format.Source) (all []string) {
	a := &src.Manifest().Adapters[0]
	for _, l := range a.Layers {
		all = append(all, l.Module)
	}
	for _, b := range a.Beside {
		all = append(all, b.Target)
	}
	slices.Sort(all)
	return all
}

func TestPrefixesReplaceTheBeginningOfNames(t *testing.T) {
	dir := prefixedIn(t)
	for _, c := range []struct {
		prefixes []convert.Prefix
		want     string
	}{
		{[]convert.Prefix{{"decoder", "model"}}, "head.proj.bias model.extra.layers.0.q model.layers.0.q"},
		{[]convert.Prefix{{"decoder", "model"}, {"decoder.extra", "more"}}, "head.proj.bias model.layers.0.q more.layers.0.q"},
		{[]convert.Prefix{{"", "x.y"}}, "x.y.decoder.extra.layers.0.q x.y.decoder.layers.0.q x.y.head.proj.bias"},
		{[]convert.Prefix{{"decoder", ""}, {"head.proj", "lm_head"}}, "extra.layers.0.q layers.0.q lm_head.bias"},
		{[]convert.Prefix{{"decoder.layers.0.q", "one"}}, "decoder.extra.layers.0.q head.proj.bias one"},
	} {
		src, err := convert.Open(t.Context(), dir, convert.Options{Prefix: c.prefixes})
		if err != nil {
			t.Errorf("%v: %v", c.prefixes, err)
			continue
		}
		defer src.Close()
		if got := strings.Join(names(src), " "); got != c.want {
			t.Errorf("%v: %s, want %s", c.prefixes, got, c.want)
		}
	}
}

func TestPrefixesThatCannotBeReplacedAreRefused(t *testing.T) {
	dir := prefixedIn(t)
	for name, c := range map[string]struct {
		prefixes   []convert.Prefix
		want, hint string
	}{
		"no module":     {[]convert.Prefix{{"encoder", "x"}}, `begins with the prefix "encoder"`, `"decoder.extra.layers", "decoder.layers"`},
		"half a name":   {[]convert.Prefix{{"dec", "x"}}, `begins with the prefix "dec"`, "decoder.layers"},
		"twice":         {[]convert.Prefix{{"decoder", "x"}, {"decoder", "y"}}, `"decoder" twice`, ""},
		"itself":        {[]convert.Prefix{{"decoder", "decoder"}}, "replaces itself", ""},
		"empty segment": {[]convert.Prefix{{"decoder..x", "x"}}, "no path of a module", "such as"},
		"one name":      {[]convert.Prefix{{"decoder.extra", "decoder"}}, "have the same name", ""},
		"nothing left":  {[]convert.Prefix{{"decoder.layers.0.q", ""}}, "no module", ""},
	} {
		_, err := convert.Open(t.Context(), dir, convert.Options{Prefix: c.prefixes})
		checkRefused(t, name, err, fault.Mismatch, c.want, c.hint)
	}
}

// TestPrefixesHoldInOutputs: a container and a directory of PEFT have the new names, and the
// values.
func TestPrefixesHoldInOutputs(t *testing.T) {
	src, err := convert.OpenDigested(t.Context(), prefixedIn(t), convert.Options{Prefix: []convert.Prefix{{"decoder", "model"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	want := names(src)
	container, dir := filepath.Join(t.TempDir(), "a.lora"), filepath.Join(t.TempDir(), "peft")
	for _, out := range []string{container, dir} {
		dialect, err := convert.DialectFor(out)
		if err != nil {
			t.Fatal(err)
		}
		sink, err := convert.Create(out, dialect, convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), sink, src); err != nil {
			t.Fatal(err)
		}
		back, err := convert.Open(t.Context(), out, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer back.Close()
		if got := names(back); !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", out, got, want)
		}
		for i := range back.Manifest().Tensors {
			var p [4]byte
			if err := back.ReadBlobAt(p[:], i, 0); err != nil || p != [4]byte{0, 0, 0x80, 0x3f} {
				t.Errorf("%s: tensor %d is % x (%v), want 1", out, i, p, err)
			}
		}
	}
}
