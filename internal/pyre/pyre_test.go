package pyre

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var pairsFile = flag.String("pairs", "testdata/pairs.jsonl", "what Python says, as testdata/make.py writes it")

// TestPairsMatchAsInPython compares expressions and texts with the results of CPython's re.
func TestPairsMatchAsInPython(t *testing.T) {
	f, err := os.Open(*pairsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, bad := 0, 0
	for lines := bufio.NewScanner(f); lines.Scan() && bad < 20; {
		var truth struct {
			Expr         string
			Error        bool
			Match, Other []string
		}
		if err := json.Unmarshal(lines.Bytes(), &truth); err != nil {
			t.Fatal(err)
		}
		r, err := Compile(truth.Expr)
		if (err != nil) != truth.Error {
			t.Errorf("Compile(%q) = %v, want an error: %v", truth.Expr, err, truth.Error)
			bad++
			continue
		}
		for _, text := range slices.Concat(truth.Match, truth.Other) {
			n++
			want := slices.Contains(truth.Match, text)
			if got, err := r.Match(text, NewBudget(context.Background(), 1e6)); got != want || err != nil {
				t.Errorf("%q matches %q = %v, %v, want %v", truth.Expr, text, got, err, want)
				bad++
			}
		}
	}
	if n < 1000 {
		t.Errorf("%d pairs were compared, want at least 1000", n)
	}
}

// TestBudgetsAreSteps: a match that takes exponential time ends after its budget of steps, the same
// number each time, and leaves nothing for the next match.
func TestBudgetsAreSteps(t *testing.T) {
	r, err := Compile("((a+)+)+b")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBudget(context.Background(), 100_000)
	if ok, err := r.Match(strings.Repeat("a", 60), b); ok || err != ErrBudget || b.Left() != 0 {
		t.Errorf("Match = %v, %v with %d steps left, want false, %v and 0", ok, err, b.Left(), ErrBudget)
	}
	if ok, err := r.Match("ab", b); ok || err != ErrBudget {
		t.Errorf("Match without a budget = %v, %v, want false, %v", ok, err, ErrBudget)
	}
	var spent [2]int64
	for i := range spent {
		b := NewBudget(context.Background(), 100_000)
		if ok, err := r.Match("aaaaab", b); !ok || err != nil {
			t.Errorf("Match = %v, %v, want true", ok, err)
		}
		spent[i] = 100_000 - b.Left()
	}
	if spent[0] != spent[1] || spent[0] > 100 {
		t.Errorf("two matches took %d and %d steps, want the same number, at most 100", spent[0], spent[1])
	}
}

// TestNegatedLooksEndWithTheBudget: an unfinished look-around must not count as a mismatch.
func TestNegatedLooksEndWithTheBudget(t *testing.T) {
	for _, expr := range []string{"(?!(a+)+b)a", "(?>(?!(a+)+b))a", "(?:(?!(a+)+b)a)*+"} {
		r, err := Compile(expr)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := r.Match(strings.Repeat("a", 60), NewBudget(context.Background(), 10_000)); ok || err != ErrBudget {
			t.Errorf("Match(%s) = %v, %v, want false, %v", expr, ok, err, ErrBudget)
		}
	}
}

// TestMatchesEndWithTheContext: an interrupt need not wait for the budget to run out.
func TestMatchesEndWithTheContext(t *testing.T) {
	r, err := Compile("((a+)+)+b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := NewBudget(ctx, 1<<40)
	if ok, err := r.Match(strings.Repeat("a", 60), b); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("Match = %v, %v, want false, %v", ok, err, context.Canceled)
	}
	if spent := 1<<40 - b.Left(); spent > 2*ctxSteps {
		t.Errorf("the match ended after %d steps, want at most %d", spent, 2*ctxSteps)
	}
}

// TestRepeatsOfNothingKeepTheStackSmall: a repeat that matches nothing many times ends with
// ErrBudget and never crashes.
func TestRepeatsOfNothingKeepTheStackSmall(t *testing.T) {
	for _, expr := range []string{"(){4000000000}", "((){60000}){60000}", "(|){1000000}"} {
		r, err := Compile(expr)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := r.Match("", NewBudget(context.Background(), 1e7)); ok || err != ErrBudget {
			t.Errorf("Match(%s) = %v, %v, want false, %v", expr, ok, err, ErrBudget)
		}
	}
}

// FuzzMatch: no expression and no text makes Compile or Match panic or run for ever.
func FuzzMatch(f *testing.F) {
	for _, expr := range []string{"a", "(a+)+b", `(?P<n>a)(?P=n)`, `(?(1)a|b)(c)`, "(?<=a{2})b", "[^]a-]", "(?i:K)", `\x41\012\8`, "(?>a*+)"} {
		f.Add(expr, "aab")
	}
	f.Fuzz(func(t *testing.T, expr, text string) {
		r, err := Compile(expr)
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Pos > len(expr) {
				t.Errorf("Compile(%q) = %v, want a syntax error within it", expr, err)
			}
			return
		}
		if _, err := r.Match(text, NewBudget(context.Background(), 10_000)); err != nil && err != ErrBudget {
			t.Errorf("Match = %v", err)
		}
	})
}
