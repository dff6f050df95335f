package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// TestTheBarHasNoRateBeforeHalfASecond: the first gigabyte goes into the page cache at once, and
// its rate says nothing.
func TestTheBarHasNoRateBeforeHalfASecond(t *testing.T) {
	var out bytes.Buffer
	clock := time.Unix(1000, 0)
	b := &bar{w: &out, what: "merging", total: 100e9, start: clock, at: clock,
		width: func() int { return 120 }, now: func() time.Time { return clock }}
	step := func(after time.Duration, n int64) string {
		out.Reset()
		clock = clock.Add(after)
		b.add(n)
		return out.String()
	}
	if got := step(time.Millisecond, 1e9); got != "" {
		t.Errorf("after 1 ms the bar is %q, want none", got)
	}
	if got := step(199*time.Millisecond, 1e9); !strings.Contains(got, "2 GB of 100 GB") || strings.Contains(got, "/s") || strings.Contains(got, "left") {
		t.Errorf("after 200 ms the bar is %q, want bytes, no rate and no time left", got)
	}
	if got := step(800*time.Millisecond, 0); !strings.Contains(got, " 2 GB/s") || !strings.Contains(got, "1s elapsed, 49s left") {
		t.Errorf("after 2 GB in 1 s the bar is %q, want 2 GB/s, 1s elapsed, 49s left", got)
	}
	// One burst of 10 GB/s for 0.1 s moves a mean over 5 s by 8 GB/s · (1 − e^−0.02), 0.16 GB/s.
	if got := step(100*time.Millisecond, 1e9); !strings.Contains(got, " 2.16 GB/s") {
		t.Errorf("after a burst the bar is %q, want 2.16 GB/s", got)
	}
}

func TestTheBarFitsTheTerminal(t *testing.T) {
	for width := 0; width <= 200; width++ {
		for _, rate := range []float64{0, 1, 3.21e8} {
			for _, done := range []int64{0, 123456789, 1e12} {
				line := barLine("extracting", done, 1e12, 3*time.Hour, rate, width)
				if n := utf8.RuneCountInString(line); n > max(0, width-1) {
					t.Errorf("the bar for %d columns has %d: %q", width, n, line)
				}
			}
		}
	}
	if got := barLine("merging", 1, 0, 0, 0, 80); !strings.Contains(got, "100 %") {
		t.Errorf("the bar of nothing to do is %q, want 100 %%", got)
	}
}
