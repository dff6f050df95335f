package audit

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// Text explains the verdict on a checkpoint, with the mistake if all tensors have the same one.
func (r *Report) Text(base, merged string) string {
	switch r.Verdict {
	case AsClaimed:
		if r.BaseAs != "" {
			base += " as " + r.BaseAs
		}
		return fmt.Sprintf("as claimed: %s is %s with the %s merged", merged, base, fault.Choose(len(r.Adapters), "adapter", "adapters"))
	case NotAsClaimed:
		return "not as claimed: " + r.cause(NotAsClaimed)
	}
	return "inconclusive: nothing is wrong for certain, but the data do not tell: " + r.cause(Inconclusive)
}

// cause sums up what is wrong, or unclear.
func (r *Report) cause(v Verdict) string {
	var groups []Group
	var all []*Tensor
	n := make(map[Finding]int)
	var findings []Finding
	for _, g := range r.Groups() {
		if g.Tensors[0].Verdict != v {
			continue
		}
		f := g.Tensors[0].Finding
		if groups, all = append(groups, g), append(all, g.Tensors...); n[f] == 0 {
			findings = append(findings, f)
		}
		n[f] += len(g.Tensors)
	}
	switch {
	case len(findings) == 0:
		return "nothing"
	case len(findings) > 1:
		slices.SortStableFunc(findings, func(a, b Finding) int { return n[b] - n[a] })
		var kinds []string
		for _, f := range findings {
			kinds = append(kinds, fmt.Sprintf("%s (%d)", f.Name(), n[f]))
		}
		return fmt.Sprintf("%d of %s: %s", len(all), fault.Count(len(r.Tensors), "tensor"), strings.Join(kinds, ", "))
	}
	f := findings[0]
	if len(groups) == 1 && (f == Scale || f == Weights || f == AdapterLost || f == OtherReading || f == Rounded) {
		return r.extent(all) + ", " + groups[0].Text
	}
	text := f.Text() + ", " + r.extent(all)
	if claimed, _ := r.claimed(); f == Sign && len(all) == claimed {
		text += "; base and merged checkpoint may have been given in the wrong order"
	}
	return text
}

// claimed counts the tensors that the adapters change, and the others.
func (r *Report) claimed() (changed, others int) {
	for i := range r.Tensors {
		if r.Tensors[i].Module != "" {
			changed++
		}
	}
	return changed, len(r.Tensors) - changed
}

// extent says how many of the tensors some are.
func (r *Report) extent(some []*Tensor) string {
	n := 0
	for _, t := range some {
		if t.Module != "" {
			n++
		}
	}
	changed, others := r.claimed()
	subject := fault.Choose(len(r.Adapters), "the adapter changes", "the adapters change")
	switch {
	case n == len(some) && n == changed && n == 1:
		return "in the only tensor that " + subject
	case n == len(some) && n == changed && n == 2:
		return "in both tensors that " + subject
	case n == len(some) && n == changed:
		return fmt.Sprintf("in all %s that %s", fault.Count(n, "tensor"), subject)
	case n == len(some):
		return fmt.Sprintf("in %d of the %s that %s", n, fault.Count(changed, "tensor"), subject)
	case n == 0 && others == 1:
		return "in the only tensor that no adapter changes"
	case n == 0:
		return fmt.Sprintf("in %d of the %s that no adapter changes", len(some), fault.Count(others, "tensor"))
	}
	return fmt.Sprintf("in %d of %s", len(some), fault.Count(len(r.Tensors), "tensor"))
}

// Group is a set of tensors of which the same was found, but for numbers.
type Group struct {
	Text    string // Tensor.Explain, with ranges of numbers
	Tensors []*Tensor
}

// Groups returns the tensors that are not as claimed, wrong ones first, then large groups.
func (r *Report) Groups() []Group {
	type key struct {
		verdict Verdict
		finding Finding
		text    string
	}
	at := make(map[key]int)
	var groups []Group
	var texts [][]string
	for i := range r.Tensors {
		t := &r.Tensors[i]
		if t.Verdict == AsClaimed {
			continue
		}
		text := t.common()
		k := key{t.Verdict, t.Finding, numbers.ReplaceAllString(text, "#")}
		g, isKnown := at[k]
		if !isKnown {
			g = len(groups)
			at[k], groups, texts = g, append(groups, Group{}), append(texts, nil)
		}
		groups[g].Tensors, texts[g] = append(groups[g].Tensors, t), append(texts[g], text)
	}
	for g := range groups {
		groups[g].Text = joinTexts(texts[g])
	}
	slices.SortStableFunc(groups, func(a, b Group) int {
		return cmp.Or(Worse(a.Tensors[0], b.Tensors[0]), len(b.Tensors)-len(a.Tensors))
	})
	return groups
}

// Worse orders tensors: the wrong ones come first, then the unclear ones.
func Worse(a, b *Tensor) int {
	order := func(t *Tensor) int { return slices.Index([]Verdict{NotAsClaimed, Inconclusive, AsClaimed}, t.Verdict) }
	return order(a) - order(b)
}

// common is Explain without the names that differ from layer to layer.
func (t *Tensor) common() string {
	text := t.Explain()
	module, isOther := strings.CutPrefix(text, hasUpdateOf)
	if isOther && numbers.ReplaceAllString(module, "#") == numbers.ReplaceAllString(t.Module, "#") {
		return hasUpdateOf + "the same module in another layer"
	}
	return text
}

// numbers are the numbers in a text, but not those in words, such as F16.
var numbers = regexp.MustCompile(`\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b`)

// joinTexts joins texts that differ in numbers, of which it makes ranges.
func joinTexts(texts []string) string {
	columns := make([][]string, len(numbers.FindAllString(texts[0], -1)))
	for _, text := range texts {
		for i, n := range numbers.FindAllString(text, -1) {
			columns[i] = append(columns[i], n)
		}
	}
	at := -1
	return numbers.ReplaceAllStringFunc(texts[0], func(string) string {
		at++
		value := func(a, b string) int {
			x, _ := strconv.ParseFloat(a, 64)
			y, _ := strconv.ParseFloat(b, 64)
			return cmp.Compare(x, y)
		}
		least, most := slices.MinFunc(columns[at], value), slices.MaxFunc(columns[at], value)
		if least == most {
			return least
		}
		return least + "–" + most
	})
}

// Explain describes the finding of a tensor.
func (t *Tensor) Explain() string {
	switch {
	case t.Text == "":
		return t.Finding.Text()
	case t.Finding == Merged || t.Finding == Foreign || t.Finding == Other:
		return t.Finding.Text() + ": " + t.Text
	}
	return t.Text
}

// Findings lists all findings, in the order of their constants.
func Findings() (all []Finding) {
	for _, x := range findingTexts {
		all = append(all, x.finding)
	}
	return all
}

// Name is the finding in a word or two, for a list or a heat map.
func (f Finding) Name() string { return f.texts().name }

// Text is the finding as a clause.
func (f Finding) Text() string { return f.texts().text }

func (f Finding) texts() *findingText {
	i := slices.IndexFunc(findingTexts, func(x findingText) bool { return x.finding == f })
	return &findingTexts[i]
}

type findingText struct {
	finding    Finding
	name, text string
}

var findingTexts = []findingText{
	{Untouched, "untouched", "no adapter changes the tensor, and it equals the base's"},
	{Merged, "merged", "the update is there"},
	{Requantised, "requantised", "the update is there, in codes"},
	{Replaced, "replaced", "the tensor is the adapter's own, or has its rows"},
	{NotApplied, "not applied", "the update was not applied"},
	{NotReplaced, "not replaced", "the adapter's own values are not there, but the base's"},
	{BiasDropped, "bias dropped", "the adapter's bias was dropped"},
	{Scale, "scale", "the update has another scale"},
	{Twice, "applied twice", "the update was applied twice"},
	{Sign, "subtracted", "the update was subtracted"},
	{Weights, "weights", "the adapters have other weights"},
	{AdapterLost, "adapter lost", "an adapter was not applied"},
	{Transposed, "transposed", "the update is there, transposed"},
	{Exchanged, "exchanged", "the update is that of another module"},
	{OtherReading, "misread", "the adapter was read in another way"},
	{DoRAAsPlain, "DoRA as plain", "ΔW was added without DoRA's magnitudes"},
	{Other, "another adapter", "the change is that of another adapter"},
	{Foreign, "foreign", "a foreign change"},
	{Besides, "foreign besides", "the update is there, and a foreign change besides"},
	{Elements, "elements", "a few elements are wrong"},
	{NonFinite, "NaN or infinity", "the tensor has NaN or infinity"},
	{Rounded, "rounded", "the update is there, rounded in an unknown way"},
	{Tied, "tied", "the other end of a tie has changed as well"},
	{Cast, "cast", "the tensor has gone through another dtype"},
	{Reshaped, "reshaped", "the tensor has another shape"},
	{Missing, "missing", "the tensor is missing"},
	{Extra, "extra", "neither the base nor an adapter has the tensor"},
	{Copied, "copied", "the tensor is stored again"},
}

// IsEverywhere reports whether a group has every tensor that the adapters change, and no other.
func (r *Report) IsEverywhere(g *Group) bool {
	changed, _ := r.claimed()
	return len(g.Tensors) == changed && !slices.ContainsFunc(g.Tensors, func(t *Tensor) bool { return t.Module == "" })
}

// Others names the other ways to round that explain all tensors.
func (r *Report) Others() string {
	var all []string
	for _, x := range r.OtherRoundings {
		all = append(all, string(x))
	}
	return strings.Join(all, ", ")
}
