package format

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// canonical is the manifest of the worked example.
func canonical(t testing.TB) string {
	t.Helper()
	_, text, err := arrange(example().Manifest())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// openManifest reads a manifest as opening a file does.
func openManifest(text string, newer bool) (*Manifest, error) {
	m, codings, err := parseManifest(text, newer)
	if err != nil {
		return nil, err
	}
	_, err = newPlan(m, codings, minChunkLog2, maxRawBytes)
	return m, err
}

// TestBrokenManifests breaks one rule at a time, by replacing old by new in the manifest of the
// worked example.
func TestBrokenManifests(t *testing.T) {
	text := canonical(t)
	tensor := `{"coding":"raw","dtype":"U8","name":"x","shape":[]}`
	opaque := func(i int) string { return fmt.Sprintf(`{"action":"opaque","tensor":%d}`, i) }
	withTensor := func(tensor string) []string {
		return []string{`"shape":[2,1]}]`, `"shape":[2,1]},` + tensor + `]`, `"beside":[]`, `"beside":[` + opaque(2) + `]`}
	}
	name := strings.Repeat("n", 1025)
	for _, c := range []struct {
		rule string
		edit []string // old, new, old, new, …
	}{
		{"", nil},
		{"", withTensor(tensor)},
		{"", []string{`"metadata":{}`, `"metadata":{"a":"\"\\\b\f\n\r\t\u0000\u001f` + "\x7fé\U0001F600" + `"}`}},
		{"", []string{`"alpha":2`, `"alpha":"3fe0000000000000"`}},
		{"", []string{`"alpha":2`, `"alpha":-9007199254740991`}},
		{"", []string{`"alpha":2`, `"alpha":"4340000000000000"`}}, // 2^53 is too large for an integer of the manifest
		{"", []string{`"method":"lora"`, `"method":"other:ia3"`, `"requires":[]`, `"requires":[{"feature":"x","where":""}]`}},
		{"", []string{`README.md`, `a/b../.c/ü`}},

		{"R18", []string{`"metadata":{}`, `"metadata":{"a":"` + "\xff" + `"}`}},
		{"R18", []string{`"metadata":{}`, `"metadata":{"a":"` + "\xed\xa0\x80" + `"}`}},
		{"R18", []string{`{"adapters"`, "\ufeff" + `{"adapters"`}},
		{"R19", []string{`"metadata":{}`, `"metadata":null`}},
		{"R19", []string{`"metadata":{}`, `"metadata":{"a":true}`}},
		{"R19", []string{`"shape":[2,1]}]}`, `"shape":[2,1]}]}{}`}},
		{"R19", []string{`"shape":[2,1]}]}`, `"shape":[2,1]}]`}},
		{"R19", []string{`"shape":[2,1]}]}`, `"shape":[2,1],}]}`}},
		{"R20", []string{`"shape":[2,1]`, `"shape":[2, 1]`}},
		{"R20", []string{`"shape":[2,1]}]}`, "\"shape\":[2,1]}]}\n"}},
		{"R21", []string{`"metadata":{}`, `"metadata":{"a":"","a":""}`}},
		{"R21", []string{`"metadata":{}`, `"metadata":{"b":"","a":""}`}},
		{"R21", []string{`"coding":"planes","dtype":"F32"`, `"dtype":"F32","coding":"planes"`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"\u0041"}`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"\/"}`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"\u000a"}`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"\u001F"}`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"` + "\n" + `"}`}},
		{"R22", []string{`"metadata":{}`, `"metadata":{"a":"\ud83d\ude00"}`}},
		{"R23", []string{`"alpha":2`, `"alpha":-0`}},
		{"R23", []string{`"alpha":2`, `"alpha":02`}},
		{"R23", []string{`"alpha":2`, `"alpha":2.5`}},
		{"R23", []string{`"alpha":2`, `"alpha":2e1`}},
		{"R23", []string{`"alpha":2`, `"alpha":-`}},
		{"R24", []string{`"alpha":2`, `"alpha":9007199254740992`}},
		{"R24", []string{`"size":3`, `"size":` + strings.Repeat("9", 400)}},
		{"R26", []string{`,"provenance":{"source":"","tool":"","version":""}`, ``}},
		{"R26", []string{`"alpha":2,`, ``}},
		{"R26", []string{`,"shape":[2,1]`, ``}},
		{"R27", []string{`"tensors":[`, `"temper":0,"tensors":[`}},
		{"R27", []string{`"size":3`, `"size":3,"t":0`}},
		{"R27", []string{`"scaling"`, `"scale":1,"scaling"`}},
		{"R28", []string{`"rank":1`, `"rank":"1"`}},
		{"R28", []string{`"rank":1`, `"rank":-1`}},
		{"R28", []string{`"metadata":{}`, `"metadata":[]`}},
		{"R28", []string{`"metadata":{}`, `"metadata":{"a":1}`}},
		{"R28", []string{`"sha256":""`, `"sha256":"` + strings.Repeat("A", 64) + `"`}},
		{"R28", []string{`"sha256":""`, `"sha256":"00"`}},
		{"R29", []string{`"kind":"linear"`, `"kind":"lattice"`}},
		{"R29", []string{`"dtype":"F32"`, `"dtype":"f32"`}},
		{"R29", []string{`"coding":"planes"`, `"coding":"plains"`}},
		{"R29", []string{`"method":"lora"`, `"method":"ia3"`}},
		{"R30", []string{`"alpha":2`, `"alpha":"4000000000000000"`}},
		{"R30", []string{`"alpha":2`, `"alpha":"7ff0000000000000"`}},
		{"R30", []string{`"alpha":2`, `"alpha":"7ff8000000000000"`}},
		{"R30", []string{`"alpha":2`, `"alpha":"3FE0000000000000"`}},
		{"R30", []string{`"alpha":2`, `"alpha":"8000000000000000"`}},
		{"R31", []string{`"module":"q"`, `"module":""`}},
		{"R31", []string{`"module":"q"`, `"module":"a\nb"`}},
		{"R31", []string{`"module":"q"`, `"module":"` + "\x7f" + `"`}},
		{"R31", []string{`"metadata":{}`, `"metadata":{"":""}`}},
		{"R31", []string{`"method":"lora"`, `"method":"other:"`}},
		{"R32", []string{`"module":"q"`, `"module":"` + name + `"`}},
		{"R33", []string{`"requires":[]`, `"requires":[{"feature":"b","where":""},{"feature":"a","where":""}]`}},
		{"R33", []string{`"requires":[]`, `"requires":[{"feature":"a","where":""},{"feature":"a","where":""}]`}},
		{"R34", []string{text[:strings.Index(text, `,"attachments"`)], `{"adapters":[]`}},
		{"R35", []string{`],"attachments"`, `,{"base":{"fingerprints":{},"name":"","revision":""},"beside":[],"dialect":"","layers":[],"method":"lora","name":"b","orientation":"","requires":[]}],"attachments"`}},
		{"R36", []string{`"method":"lora"`, `"method":"dora"`}},
		{"R37", []string{`"rank":1`, `"rank":0`}},
		{"R37", []string{`"rank":1`, `"rank":65537`}},
		{"R38", []string{`"A":0`, `"C":0`, `"B":1,`, ``, `{"C":0`, `{"B":1,"C":0`, `,"B":1}`, `}`}},
		{"R39", []string{`"shape":[1,2]`, `"shape":[2]`}},
		{"R39", []string{`"rank":1`, `"rank":2`}},
		{"R40", []string{`"shape":[2,1]`, `"shape":[1,2]`}},
		{"R41", append([]string{`"B":1}`, `"B":1,"bias":2}`}, `"shape":[2,1]}]`, `"shape":[2,1]},`+tensor+`]`)},
		{"R42", append([]string{`"B":1}`, `"B":1,"magnitude":2}`}, `"shape":[2,1]}]`, `"shape":[2,1]},`+tensor+`]`)},
		{"R43", append(withTensor(strings.Replace(tensor, "[]", "[2]", 1)), opaque(2), `{"action":"rows","rows":[1,1],"target":"x","tensor":2}`)},
		{"R44", append(withTensor(strings.Replace(tensor, "[]", "[2]", 1)), opaque(2), `{"action":"rows","rows":[1],"target":"x","tensor":2}`)},
		{"R44", append(withTensor(tensor), opaque(2), `{"action":"rows","rows":[],"target":"x","tensor":2}`)},
		{"R45", []string{`"B":1`, `"B":2`}},
		{"R45", []string{`"B":1`, `"B":9007199254740991`}},
		{"R46", []string{`"B":1`, `"B":0`}},
		{"R46", []string{`"shape":[2,1]}]`, `"shape":[2,1]},` + tensor + `]`}},
		{"R47", withTensor(strings.Replace(tensor, `"x"`, `"q.lora_A.weight"`, 1))},
		{"R48", withTensor(strings.Replace(tensor, `"x"`, `"__metadata__"`, 1))},
		{"R50", withTensor(strings.Replace(tensor, "[]", "[1,1,1,1,1,1,1,1,1]", 1))},
		{"R51", withTensor(strings.Replace(tensor, "[]", "[0,4294967296,65537]", 1))},
		{"R51", withTensor(strings.Replace(tensor, "[]", "[9007199254740991,9007199254740991,0]", 1))},
		{"R52", withTensor(strings.Replace(tensor, `"U8","name":"x","shape":[]`, `"F4","name":"x","shape":[3]`, 1))},
		{"R53", withTensor(strings.Replace(tensor, `raw`, `planes`, 1))},
		{"R54", []string{`README.md`, `../README.md`}},
		{"R54", []string{`README.md`, `/README.md`}},
		{"R54", []string{`README.md`, `c:README.md`}},
		{"R54", []string{`README.md`, `a//b`}},
		{"R54", []string{`README.md`, `a\\b`}},
		{"R56", []string{`"size":3`, `"size":9007199254740991`}},
		{"R57", []string{`"size":3`, `"size":1099511627776`}},
	} {
		edited := text
		for i := 0; i < len(c.edit); i += 2 {
			if !strings.Contains(edited, c.edit[i]) && i == 0 {
				t.Fatalf("%s: the manifest has no %s", c.rule, c.edit[i])
			}
			edited = strings.Replace(edited, c.edit[i], c.edit[i+1], 1)
		}
		_, err := openManifest(edited, false)
		if ruleOf(err) != c.rule || c.rule == "" && err != nil {
			t.Errorf("%q: %v, want %q\n%s", c.edit, err, c.rule, edited)
		}
		var e *fault.Error
		if errors.As(err, &e) && !errors.Is(err, ruleKinds[atoi(e.Rule[1:])]) {
			t.Errorf("%v is of the kind %v", err, e.Kind)
		}
	}
}

func atoi(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

func TestDeepNestingIsALimit(t *testing.T) {
	text := canonical(t)
	for _, c := range []struct {
		depth int
		rule  string
	}{{15, ""}, {16, "R25"}, {1_000_000, "R25"}} {
		deep := strings.Replace(text, `"tensors"`, `"tensor":`+strings.Repeat("[", c.depth)+strings.Repeat("]", c.depth)+`,"tensors"`, 1)
		if _, err := openManifest(deep, true); ruleOf(err) != c.rule {
			t.Errorf("a member nested %d deep: %v, want %q", c.depth+1, err, c.rule)
		}
	}
}

func TestALaterMinorVersionIsReadAndNoted(t *testing.T) {
	text := strings.Replace(canonical(t), `"alpha":2`, `"alfa":{"x":[1,"",{}]},"alpha":2`, 1)
	m, err := openManifest(text, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Notes) != 1 || m.Adapters[0].Layers[0].Alpha != 2 {
		t.Errorf("notes %q and alpha %v, want one note and 2", m.Notes, m.Adapters[0].Layers[0].Alpha)
	}
	for _, bad := range []string{`"x":[1.5,`, `"x":[null,`, `"x":[1 ,`} {
		if _, err := openManifest(strings.Replace(text, `"x":[1,`, bad, 1), true); err == nil {
			t.Errorf("an unknown member with %s is accepted", bad)
		}
	}
}

// TestBrokenHeads changes bytes of the head of a file.
func TestBrokenHeads(t *testing.T) {
	file, _ := written(t, example(), WriterOptions{})
	for _, c := range []struct {
		rule string
		off  int
		p    string
	}{
		{"R3", 0, "\x5b"},
		{"R3", 8, "\x88"},
		{"R4", 16, "\x02"},
		{"R4", 16, "\x00"},
		{"R5", 20, "\x02"},
		{"R77", 20, "\x01"}, // the example has one adapter
		{"R5", 23, "\x80"},
		{"R6", 28, "\x0f"},
		{"R6", 28, "\x19"},
		{"R7", 30, "\x01"},
		{"R8", 4, "\x1b\x00\x00\x00"},
		{"R8", 4, "\xff\xff\xff\xff"},
		{"R9", 32, "\xff\xff\xff\xff"},
		{"R9", 32, "\x01\x00\x00\x01"}, // the default limit is 16 MiB
		{"R10", 36, "\x29"},
		{"R11", 40, "\x20"},
		{"R12", 41, "\x15"},
		{"R13", 43, "\x07"},
		{"R17", 0x157, "\x00"},
		{"R1", 4, "\x60\x02\x00\x00"}, // beyond the end of the file
	} {
		broken := bytes.Clone(file)
		copy(broken[c.off:], c.p)
		_, err := NewReader(bytes.NewReader(broken), int64(len(broken)), ReaderOptions{})
		if ruleOf(err) != c.rule {
			t.Errorf("% x at %d: NewReader = %v, want %s", c.p, c.off, err, c.rule)
		}
		if err := streamBytes(broken); ruleOf(err) != c.rule {
			t.Errorf("% x at %d: stream = %v, want %s", c.p, c.off, err, c.rule)
		}
		var e *fault.Error
		if c.rule == "R5" && errors.As(err, &e) && !strings.Contains(e.Msg, "bit") {
			t.Errorf("%v does not name the bit", err)
		}
	}
}

// TestBrokenTails changes bytes of the digests and the seek table, counted from the end of a file
// with two chunks.
func TestBrokenTails(t *testing.T) {
	file, _ := written(t, example(), WriterOptions{})
	tail := len(file) - int(tailLen(2))
	seek := tail + int(digestsLen(2))
	for _, c := range []struct {
		rule string
		off  int
		p    string
	}{
		{"R58", tail, "\x5a"},
		{"R58", tail + 4, "\x89"},
		{"R59", tail + 8, "\x14"},
		{"R60", tail + 16, "\x00\x00"},
		{"R62", tail + 48, "\x00\x00"},
		{"R61", tail + 80, "\x00\x00"},
		{"R63", seek, "\x5d"},
		{"R63", seek + 4, "\x2a"},
		{"R66", seek + 8, "\x00"},
		{"R65", seek + 12, "\x01"},
		{"R66", seek + 16, "\x1c"},
		{"R16", seek + 16, "\xff"},
		{"R65", seek + 20, "\x11"},
		{"R66", seek + 32, "\x91"},
		{"R63", seek + 40, "\x05"},
		{"R64", seek + 44, "\x80"},
		{"R1", seek + 45, "\x00"},
	} {
		broken := bytes.Clone(file)
		copy(broken[c.off:], c.p)
		onlyVerify := c.rule == "R61" || c.rule == "R62"
		if _, err := NewReader(bytes.NewReader(broken), int64(len(broken)), ReaderOptions{}); ruleOf(err) != c.rule && !onlyVerify {
			t.Errorf("% x at %d: NewReader = %v, want %s", c.p, c.off, err, c.rule)
		} else if onlyVerify && err != nil {
			t.Errorf("% x at %d: NewReader = %v, which only Verify can find", c.p, c.off, err)
		}
		want := c.rule
		switch want {
		case "R16":
			want = "R66" // the frame itself is valid, but has another length than in the table
		case "R1":
			want = "R63"
		}
		if err := verifyBytes(broken); ruleOf(err) != want {
			t.Errorf("% x at %d: Verify = %v, want %s", c.p, c.off, err, want)
		}
		if err := streamBytes(broken); ruleOf(err) != want {
			t.Errorf("% x at %d: stream = %v, want %s", c.p, c.off, err, want)
		}
	}
}

func TestAttachmentsAreCheckedAgainstTheirDigest(t *testing.T) {
	src := example()
	src.manifest.Attachments[0].SHA256 = strings.Repeat("0", 64)
	var out bytes.Buffer
	if _, err := Write(context.Background(), &out, src, WriterOptions{}); ruleOf(err) != "R55" {
		t.Errorf("Write = %v, want R55", err)
	}
	src.manifest.Attachments[0].Name = SourceHeader
	file, _ := written(t, src, WriterOptions{})
	if err := verifyBytes(file); err != nil {
		t.Errorf("Verify of a source header with the digest of its file = %v", err)
	}
}

// TestOtherFilesAreNamed holds files of other formats with the name of a .lora file.
func TestOtherFilesAreNamed(t *testing.T) {
	good, _ := written(t, example(), WriterOptions{})
	for _, c := range []struct{ file, rule, hint string }{
		{"", "R1", "fetch it again"},
		{"1234567", "R1", "fetch it again"},
		{"<!DOCTYPE html>\n<html><head><title>404</title>", "R3", "HTML page"},
		{"GGUF\x03\x00\x00\x00" + strings.Repeat("\x00", 40), "R3", "GGUF file"},
		{"PK\x03\x04" + strings.Repeat("\x00", 26) + "archive/data.pkl", "R3", "torch saves pickles"},
		{`{"error":"Repository not found"}`, "R3", "JSON text"},
		{"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "R3", "git lfs pull"},
		{"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":{}}        ", "R3", "safetensors"},
		{"\x28\xb5\x2f\xfd\x24\x07\x39\x00\x00content\x00\x00\x00\x00", "R3", "zstd"},
		{"\x50\x2a\x4d\x18\x08\x00\x00\x00whatever", "R3", "zstd"},
		{strings.Replace(string(good), "\r\n", "\n", 1), "R3", "text mode"},
		{strings.Replace(string(good), "\x1a\n", "\x1a\r\n", 1), "R3", "text mode"},
		{"\xff\xfe" + string(good), "R3", ""},
	} {
		_, err := NewReader(strings.NewReader(c.file), int64(len(c.file)), ReaderOptions{})
		if ruleOf(err) != c.rule || !strings.Contains(fault.Hint(err), c.hint) {
			t.Errorf("%.20q: %v with hint %q, want %s and a hint with %q", c.file, err, fault.Hint(err), c.rule, c.hint)
		}
	}
}

func TestLimitsOfTheCaller(t *testing.T) {
	src := example()
	file, _ := written(t, src, WriterOptions{})
	for _, c := range []struct {
		opts ReaderOptions
		rule string
	}{
		{ReaderOptions{MaxManifestBytes: 531}, "R9"},
		{ReaderOptions{MaxManifestBytes: 532, MaxRawBytes: 19}, ""},
		{ReaderOptions{MaxRawBytes: 18}, "R56"},
	} {
		if _, err := NewReader(bytes.NewReader(file), int64(len(file)), c.opts); ruleOf(err) != c.rule {
			t.Errorf("NewReader(%+v) = %v, want %q", c.opts, err, c.rule)
		}
	}
}

// TestWriteRefusesWhatNoReaderAccepts: Write finds a wrong manifest before it writes a byte.
func TestWriteRefusesWhatNoReaderAccepts(t *testing.T) {
	for _, c := range []struct {
		rule   string
		change func(*Manifest)
	}{
		{"R30", func(m *Manifest) { m.Adapters[0].Layers[0].Alpha = math.NaN() }},
		{"R31", func(m *Manifest) { m.Adapters[0].Layers[0].Module = "" }},
		{"R18", func(m *Manifest) { m.Metadata = map[string]string{"a": "\xff"} }},
		{"R29", func(m *Manifest) { m.Tensors[0].DType = dtype.Invalid }},
		{"R29", func(m *Manifest) { m.Adapters[0].Method = "ia3" }},
		{"R33", func(m *Manifest) {
			m.Adapters[0].Layers = append(m.Adapters[0].Layers, m.Adapters[0].Layers[0])
			m.Adapters[0].Layers[1].Roles = nil
		}},
		{"R45", func(m *Manifest) { m.Adapters[0].Layers[0].Roles = map[Role]int{RoleA: 0, RoleB: -1} }},
		{"R46", func(m *Manifest) { m.Adapters[0].Layers[0].Roles = map[Role]int{RoleA: 0, RoleB: 0} }},
		{"R40", func(m *Manifest) { m.Tensors[1].Shape = []uint64{1, 2} }},
	} {
		src := example()
		c.change(&src.manifest)
		var out bytes.Buffer
		if _, err := Write(context.Background(), &out, src, WriterOptions{}); ruleOf(err) != c.rule || out.Len() > 0 {
			t.Errorf("Write = %v after %d bytes, want %s and none", err, out.Len(), c.rule)
		}
		if err := Copy(context.Background(), NewWriter(&out, WriterOptions{}), src); ruleOf(err) != c.rule {
			t.Errorf("Copy = %v, want %s", err, c.rule)
		}
	}
}
