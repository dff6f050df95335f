package naming

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// applying is the text of spec/APPLY.md.
func applying(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../spec/APPLY.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// between returns the part of a text between two marks.
func between(t *testing.T, text, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, from)
	part, _, ended := strings.Cut(rest, to)
	if !ok || !ended {
		t.Fatalf("the specification has nothing between %q and %q", from, to)
	}
	return part
}

var codeSpan = regexp.MustCompile("`([^`]*)`")

// spans lists what stands between backquotes.
func spans(text string) (all []string) {
	for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestTablesOfNamesAreThoseOfTheSpec compares the tables of renamed modules with appendix A of
// spec/APPLY.md, row by row and pair by pair.
func TestTablesOfNamesAreThoseOfTheSpec(t *testing.T) {
	draft, err := os.ReadFile("../../spec/NAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	_, later, _ := strings.Cut(string(draft), "**Other names.**")
	var rows [][]string
	for line := range strings.Lines(between(t, applying(t), "## Appendix A", "## Appendix B") + later) {
		if cells := strings.Split(line, "|"); len(cells) == 4 && strings.Contains(cells[2], "→") {
			rows = append(rows, cells)
		}
	}
	if len(rows) != len(moves) {
		t.Fatalf("the specification has %d tables, want %d", len(rows), len(moves))
	}
	for i, m := range moves {
		pairs := spans(rows[i][2])
		want := newMove("", pairs...)
		if strings.Contains(rows[i][1], "to newer only") {
			want.older = nil
		} else if strings.Contains(rows[i][1], "to older only") {
			want.newer = nil
		}
		if !slices.EqualFunc(m.newer, want.newer, sameReplacement) || !slices.EqualFunc(m.older, want.older, sameReplacement) {
			t.Errorf("table %q of the specification has the pairs %q, want %v and back %v", rows[i][1], pairs, m.newer, m.older)
		}
	}
}

func sameReplacement(a, b replacement) bool {
	return a.new == b.new && a.old.String() == b.old.String()
}

// TestListsOfNamesAreThoseOfTheSpec compares the lists of modules, classes and model types with
// those of spec/APPLY.md.
func TestListsOfNamesAreThoseOfTheSpec(t *testing.T) {
	text := strings.ReplaceAll(applying(t), "\n", " ")
	keys := func(m map[string]bool) []string { return slices.Collect(maps.Keys(m)) }
	for _, list := range []struct {
		from, to string
		want     []string
	}{
		{"input embeddings are", "; heads are", keys(tiable)},
		{"; heads are", "; lookup tables are", keys(heads)},
		{"; lookup tables are", ".", keys(embeddings)},
		{"*Words of generative classes*:", ".", generative},
		{"*Model types that tie their ends by default*:", ".", tiesByDefault},
		{"untie` for the model types", ", and where", keys(scaledHeads)},
		{"contains no *sense*:", ". Otherwise", senses},
		{"The model types `gpt_oss`, `aria`", "are *of", []string{"aria_text", "openai_privacy_filter"}},
		{"if the model type is `gpt2`", ", and ℓ", []string{"openai-gpt", "imagegpt", "decision_transformer"}},
		{"is the leaf of M;", "are the", keys(conv1DNames)},
		{"first those of the list", "as they stand there", registration},
		{"without the segments", "and without empty ones", wrappers[:len(wrappers)-1]},
	} {
		got := spans(between(t, text, list.from, list.to))
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(list.want)); !slices.Equal(got, want) {
			t.Errorf("%q of the specification lists %q, want %q", list.from, got, want)
		}
	}
	if n := len(transposedExperts); n != 4 {
		t.Errorf("%d model types of transposed experts, the specification has 4", n)
	}
	if n := len(conv1DModels); n != 4 {
		t.Errorf("%d model types with Conv1D, the specification has 4", n)
	}
}

// TestUntiedHeadsAreThoseOfTheSpec compares the names of untied heads with appendix B.
func TestUntiedHeadsAreThoseOfTheSpec(t *testing.T) {
	got := make(map[string]string)
	_, table, _ := strings.Cut(applying(t), "*Names of an untied head*")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		name := strings.Join(spans(cells[1]), "")
		for _, modelType := range spans(cells[2]) {
			got[modelType] = name
		}
	}
	if !maps.Equal(got, otherHeads) {
		t.Errorf("the specification has the heads %v, want %v", got, otherHeads)
	}
}

// TestSegmentsOfHeadsAreThoseOfTheSpec compares the first segments of heads with appendix B, and
// both with the heads of the classes of transformers.
func TestSegmentsOfHeadsAreThoseOfTheSpec(t *testing.T) {
	text := between(t, applying(t), "*First segments of heads*", "*Names of an untied head*")
	list, table, _ := strings.Cut(text, "For these model types")
	if got := spans(list); !slices.Equal(got, headSegments) {
		t.Errorf("the specification has the segments %q, want %q", got, headSegments)
	}
	got := make(map[string][]string)
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) == 4 && len(spans(cells[1])) == 1 {
			got[spans(cells[1])[0]] = spans(cells[2])
		}
	}
	if !maps.EqualFunc(got, headSegmentsOf, slices.Equal) {
		t.Errorf("the specification has for model types %v, want %v", got, headSegmentsOf)
	}
	for line := range strings.Lines(taskTable) {
		modelType, _, _ := strings.Cut(line, " ")
		for _, task := range tasksOf(modelType) {
			for _, name := range task.Heads {
				if segment, _, _ := strings.Cut(name, "."); !IsHeadSegment(segment, modelType) {
					t.Errorf("%s of %s has a head %q, which no list has", task.Class, modelType, name)
				}
			}
		}
	}
}
