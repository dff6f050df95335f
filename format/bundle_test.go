package format

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// adapterOf is an adapter of two layers. The first one differs with x, the second one does not.
func adapterOf(t *testing.T, x float32) Source {
	t.Helper()
	b := NewBuilder("test")
	b.Linear("own", 1, 1, Float32s([]float32{1, x}), Float32s([]float32{x}))
	b.Linear("common", 1, 1, Float32s([]float32{5, 6}), Float32s([]float32{7}))
	b.Attach("adapter_config.json", []byte(fmt.Sprint(x)))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// fileOf is a source as a .lora file.
func fileOf(t *testing.T, src Source) []byte {
	t.Helper()
	var file bytes.Buffer
	if _, err := Write(t.Context(), &file, src, WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func idOf(t *testing.T, src Source) string {
	t.Helper()
	id, err := ContentID(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestBundlesGiveTheirMembersBack: an adapter that went into a bundle comes out with its content id
// and its attachments, whether the bundle shares tensors or not.
func TestBundlesGiveTheirMembersBack(t *testing.T) {
	one, two := adapterOf(t, 1), adapterOf(t, 2)
	bundle, err := Bundle(Member{"two", two}, Member{"one", one})
	if err != nil {
		t.Fatal(err)
	}
	shared, err := Share(t.Context(), bundle)
	if err != nil {
		t.Fatal(err)
	}
	if n, m := len(bundle.Manifest().Tensors), len(shared.Manifest().Tensors); n != 8 || m != 6 {
		t.Errorf("the bundle has %d tensors, and %d when it shares, want 8 and 6", n, m)
	}
	plain, short := fileOf(t, bundle), fileOf(t, shared)
	if plain[18] != 0 || plain[20] != 0 || short[18] != 1 || short[20] != 1 {
		t.Errorf("minor and critical are %d, %d without sharing, %d, %d with it", plain[18], plain[20], short[18], short[20])
	}
	if a, b := idOf(t, bundle), idOf(t, shared); a != b {
		t.Errorf("sharing changes the content id from %s to %s", a, b)
	}
	for _, file := range [][]byte{plain, short} {
		r, err := NewReader(bytes.NewReader(file), int64(len(file)), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), bytes.NewReader(file), int64(len(file)), ReaderOptions{}); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]Source{"one": one, "two": two} {
			got, err := Select(r, name)
			if err != nil {
				t.Fatal(err)
			}
			if idOf(t, got) != idOf(t, want) {
				t.Errorf("%q has another content id in the bundle", name)
			}
			m := got.Manifest()
			if len(m.Attachments) != 1 || m.Attachments[0].Name != PEFTConfig {
				t.Fatalf("%q has the attachments %v", name, m.Attachments)
			}
			p := make([]byte, m.Attachments[0].NBytes)
			if err := got.ReadBlobAt(p, len(m.Tensors), 0); err != nil || string(p) != map[string]string{"one": "1", "two": "2"}[name] {
				t.Errorf("%q: its configuration is %q, %v", name, p, err)
			}
		}
		if _, err := Select(r, "three"); !errors.Is(err, ErrMismatch) {
			t.Errorf("an adapter that is not there: %v", err)
		}
	}
}

// TestABundleOfOne: the names of its attachments have no prefix.
func TestABundleOfOne(t *testing.T) {
	bundle, err := Bundle(Member{"only", adapterOf(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if m := bundle.Manifest(); m.Attachments[0].Name != PEFTConfig || m.Adapters[0].Name != "only" {
		t.Errorf("the manifest of a bundle of one: %+v", m)
	}
	if a, err := AdapterID(t.Context(), bundle); err != nil || a != idOf(t, adapterOf(t, 1)) {
		t.Errorf("the id of the adapter in a bundle of one is %s, %v, want that of the adapter alone", a, err)
	}
	got, err := Select(bundle, "only")
	if err != nil || idOf(t, got) != idOf(t, adapterOf(t, 1)) || len(got.Manifest().Attachments) != 1 {
		t.Errorf("the adapter comes out as %+v, %v", got, err)
	}
}

// TestSharingNeedsItsBit: R46 and R77.
func TestSharingNeedsItsBit(t *testing.T) {
	bundle, err := Bundle(Member{"one", adapterOf(t, 1)}, Member{"two", adapterOf(t, 2)})
	if err != nil {
		t.Fatal(err)
	}
	shared, err := Share(t.Context(), bundle)
	if err != nil {
		t.Fatal(err)
	}
	for rule, file := range map[string][]byte{"R46": fileOf(t, shared), "R77": fileOf(t, bundle)} {
		file = slices.Clone(file)
		file[20] ^= 1
		_, err := NewReader(bytes.NewReader(file), int64(len(file)), ReaderOptions{})
		var e *Error
		if !errors.As(err, &e) || e.Rule != rule {
			t.Errorf("with bit 0 of critical inverted: %v, want rule %s", err, rule)
		}
	}
}

// TestBundlesRefuse: names that no bundle can have, and bundles within bundles.
func TestBundlesRefuse(t *testing.T) {
	one := adapterOf(t, 1)
	two, err := Bundle(Member{"a", one}, Member{"b", one})
	if err != nil {
		t.Fatal(err)
	}
	for what, members := range map[string][]Member{
		"no member": nil, "no name": {{"", one}}, "a control character": {{"a\n", one}},
		"a long name": {{string(make([]byte, MaxNameBytes+1)), one}}, "a bundle": {{"both", two}}, "one name twice": {{"a", one}, {"a", one}},
	} {
		if _, err := Bundle(members...); err == nil {
			t.Errorf("a bundle with %s is made", what)
		}
	}
	if same, err := Share(context.Background(), one); err != nil || same != one {
		t.Errorf("sharing among one adapter: %v, %v", same, err)
	}
}
