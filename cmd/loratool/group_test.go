package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestNamesThatDifferInNumbersShareALine(t *testing.T) {
	layers := func(pattern string, numbers ...int) (all []string) {
		for _, n := range numbers {
			all = append(all, fmt.Sprintf(pattern, n))
		}
		return all
	}
	for _, c := range []struct {
		names, want []string
	}{
		{[]string{"lin0", "lin1", "fc1"}, []string{"1 lin0", "1 lin1", "1 fc1"}},
		{layers("layers.%d.q", 0, 1, 2, 3), []string{"4 layers.0–3.q"}},
		{layers("layers.%d.q", 3, 1, 2, 8), []string{"4 layers.1–3,8.q"}},
		{layers("h.%d", 4, 12, 20, 28, 36), []string{"5 h.4,12,…,36"}},
		{layers("down_blocks_%d_attn", 0, 1), []string{"2 down_blocks_0–1_attn"}},
		{layers("experts.%d.w1", 7), []string{"1 experts.7.w1"}},
		{[]string{"0.1.w", "0.2.w"}, []string{"2 0.1–2.w"}},
		{[]string{"b.0.e.0", "b.0.e.1", "b.1.e.0", "b.1.e.1"}, []string{"4 b.0–1.e.0–1"}},
		{[]string{"b.0.e.0", "b.0.e.1", "b.1.e.0", "b.2.e.0", "b.2.e.1"}, []string{"4 b.0,2.e.0–1", "1 b.1.e.0"}},
		{[]string{"a.007", "a.008", "0", "1", ".", "", "a..1", "a..2"}, []string{"1 a.007", "1 a.008", "2 0–1", "1 .", "1 ", "2 a..1–2"}},
	} {
		var got []string
		for _, g := range groupNames(len(c.names), func(i int) (string, string) { return c.names[i], "" }) {
			got = append(got, fmt.Sprint(g.n, " ", g.name))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("groups of %q = %q, want %q", c.names, got, c.want)
		}
	}
}

// TestGroupsKeepWhatDiffers: items of unlike keys stay apart, and a group knows its first item.
func TestGroupsKeepWhatDiffers(t *testing.T) {
	names := []string{"x.0", "y", "x.1", "x.2", "x.3"}
	got := groupNames(len(names), func(i int) (string, string) { return names[i], fmt.Sprint(i == 3) })
	want := []group{{"x.0–1,3", 0, 3}, {"y", 1, 1}, {"x.2", 3, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("groups = %v, want %v", got, want)
	}
	if all := groupNames(0, nil); all != nil {
		t.Errorf("groups of nothing = %v", all)
	}
	if parts, numbers := splitNumbers(strings.Repeat("9", 30), nil, nil); len(numbers) != 0 || len(parts) != 1 {
		t.Errorf("a number that no int holds is cut into %q, %v", parts, numbers)
	}
}
