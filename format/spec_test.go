package format

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

var update = flag.Bool("update", false, "write the worked example of the specification anew")

const (
	specFile  = "../spec/FORMAT.md"
	applyFile = "../spec/APPLY.md"
	// methodsFile has rules of the format among those of applying: the first ones.
	methodsFile = "../spec/METHODS.md"
)

func specText(t *testing.T) string { return readText(t, specFile) }

func readText(t *testing.T, path string) string {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// example is the adapter of section 17.
func example() *memory {
	m := &memory{}
	a := m.tensor("q.lora_A.weight", dtype.F32, []byte{0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0}, 1, 2)
	b := m.tensor("q.lora_B.weight", dtype.F32, []byte{0, 0, 0, 0x3f, 0, 0, 0x80, 0x40}, 2, 1)
	m.manifest.Adapters = []Adapter{{Method: "lora", Layers: []Layer{
		{Module: "q", Kind: Linear, Rank: 1, Alpha: 2, Scaling: AlphaOverR, Roles: map[Role]int{RoleA: a, RoleB: b}},
	}}}
	m.attach(ModelCard, "", []byte("hi\n"))
	return m
}

var (
	exampleBlock = regexp.MustCompile("(?s)(<!-- example -->\n```\n)(.*?)(```\n)")
	exampleLine  = regexp.MustCompile(`^([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+)(?:  |$)`)
)

// TestTheWorkedExampleIsARealFile compares the annotated bytes of section 17, and the ids and
// numbers beside them, with the output of Write and Dump for the same adapter.
func TestTheWorkedExampleIsARealFile(t *testing.T) {
	file, sum := written(t, example(), WriterOptions{})
	var dump bytes.Buffer
	if err := Dump(t.Context(), &dump, bytes.NewReader(file), int64(len(file))); err != nil {
		t.Fatal(err)
	}
	spec := specText(t)
	if *update {
		spec = exampleBlock.ReplaceAllString(spec, "${1}"+strings.ReplaceAll(dump.String(), "$", "$$")+"${3}")
		if err := os.WriteFile(specFile, []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	block := exampleBlock.FindStringSubmatch(spec)
	if block == nil {
		t.Fatal("the specification has no example")
	}
	if block[2] != dump.String() {
		t.Errorf("the example is not what Dump writes; run with -update and read the diff:\n%s", dump.String())
	}
	var got []byte
	for line := range strings.Lines(block[2]) {
		m := exampleLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		if off, _ := strconv.ParseInt(m[1], 16, 64); off != int64(len(got)) {
			t.Errorf("the example goes on at byte %x, want %x", off, len(got))
		}
		p, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, file) {
		t.Errorf("the bytes of the example are\n%x, want\n%x", got, file)
	}
	for _, want := range []string{
		"The content id is `" + sum.ContentID + "`",
		"the file id `" + sum.FileID + "`",
		"is " + strconv.Itoa(int(le.Uint32(file[32:]))) + " bytes (`" + strings.ToUpper(spaced(file[32:36])) + "` at offset 32)",
	} {
		if !strings.Contains(spec, want) {
			t.Errorf("the specification does not say %q", want)
		}
	}
	if err := verifyBytes(got); err != nil {
		t.Errorf("Verify of the example: %v", err)
	}
}

func spaced(p []byte) string {
	var words []string
	for _, b := range p {
		words = append(words, hex.EncodeToString([]byte{b}))
	}
	return strings.Join(words, " ")
}

// ruleLine is the form of a rule: its number, its text, and the kind of error.
var ruleLine = regexp.MustCompile(`(?m)^\*\*R(\d+)\.\*\* (.*) \[(\w+)\]$`)

// oldRules is the last rule of version 1.0. Those of later versions stand in the sections that they
// belong to.
const oldRules = 70

// TestRulesHaveTheKindsOfTheSpec compares the kinds of error with the words at the end of the
// rules.
func TestRulesHaveTheKindsOfTheSpec(t *testing.T) {
	kinds := map[string]error{"corrupt": ErrCorrupt, "truncated": ErrTruncated, "unsupported": ErrUnsupported, "limit": ErrLimit}
	n, newer, seen := 0, oldRules, make(map[int]bool)
	for _, m := range ruleLine.FindAllStringSubmatch(specText(t), -1) {
		rule, _ := strconv.Atoi(m[1])
		if seen[rule] {
			t.Errorf("R%d stands in two places", rule)
		}
		seen[rule] = true
		if rule <= oldRules {
			if n++; rule != n {
				t.Errorf("rule R%d stands where R%d is due", rule, n)
			}
		} else {
			newer = max(newer, rule)
		}
		if rule >= len(ruleKinds) || ruleKinds[rule] != kinds[m[3]] {
			t.Errorf("R%d is %q in the specification and another kind in ruleKinds", rule, m[3])
		}
	}
	if n != oldRules || len(seen) != newer || newer != ruleShared {
		t.Errorf("the specification has %d rules up to R%d, want R%d", len(seen), newer, ruleShared)
	}
}

// TestRulesOfTheDrafts: the rules of names and of methods share their numbers. Each number stands
// once, in ascending order in its text, and the numbers go on from those of applying without a gap.
// The rules that the format checks have their kinds in ruleKinds.
func TestRulesOfTheDrafts(t *testing.T) {
	var all []int
	for _, file := range []string{"../spec/NAMES.md", methodsFile} {
		before := 0
		for _, m := range ruleLine.FindAllStringSubmatch(readText(t, file), -1) {
			n, _ := strconv.Atoi(m[1])
			if n <= before || strings.Count(m[2], "MUST") != 1 {
				t.Errorf("%s: rule R%d stands behind R%d, or has not one MUST", file, n, before)
			}
			before, all = n, append(all, n)
			if isOfFormat := n < len(ruleKinds) && ruleKinds[n] == ErrCorrupt; isOfFormat != (m[3] == "corrupt") {
				t.Errorf("R%d is %q in the specification and another kind in ruleKinds", n, m[3])
			}
		}
	}
	slices.Sort(all)
	for i, n := range all {
		if want := lastOfApplying(t) + 1 + i; n != want {
			t.Fatalf("rule R%d stands where R%d is due", n, want)
		}
	}
}

// lastOfApplying is the number of the last rule of spec/APPLY.md.
func lastOfApplying(t *testing.T) int {
	rules := ruleLine.FindAllStringSubmatch(readText(t, applyFile), -1)
	n, _ := strconv.Atoi(rules[len(rules)-1][1])
	return n
}

// TestRulesOfApplyingGoOnFromTheFormat: they have the next numbers, one MUST each, a kind of error
// that the text knows, and no reference to a rule that is not there.
func TestRulesOfApplyingGoOnFromTheFormat(t *testing.T) {
	text := readText(t, applyFile)
	n := ruleShared
	for _, m := range ruleLine.FindAllStringSubmatch(text, -1) {
		if n++; m[1] != strconv.Itoa(n) {
			t.Errorf("rule R%s stands where R%d is due", m[1], n)
		}
		if strings.Count(m[2], "MUST") != 1 {
			t.Errorf("R%s has not one MUST", m[1])
		}
		switch m[3] {
		case "corrupt", "unsupported", "mismatch", "check":
		default:
			t.Errorf("R%s is of the kind %q, which the text does not know", m[1], m[3])
		}
	}
	if n < ruleShared+1 {
		t.Error("no rule of applying")
	}
	for _, m := range regexp.MustCompile(`\bR(\d+)\b`).FindAllStringSubmatch(text, -1) {
		if rule, _ := strconv.Atoi(m[1]); rule < 1 || rule > n {
			t.Errorf("the text speaks of R%d; the last rule is R%d", rule, n)
		}
	}
}
