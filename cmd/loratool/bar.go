package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fileio"
)

const (
	barEvery    = 100 * time.Millisecond // the time between two drawings
	barNoRate   = 500 * time.Millisecond // before this the page cache, not the disk, sets the rate
	barSmooth   = 5 * time.Second        // the time over which the rate forgets
	barMinCells = 8
	barMaxCells = 40
)

// bar is a progress bar on one line of a terminal.
type bar struct {
	mu    sync.Mutex
	w     io.Writer
	width func() int
	now   func() time.Time
	what  string
	total int64
	start time.Time

	done  int64
	rate  float64 // bytes per second, smoothed; 0 is not known
	at    time.Time
	atN   int64 // done at the time of at
	drawn bool
}

// add counts n more bytes, and draws. Several goroutines may call it.
func (b *bar) add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += n
	now := b.now()
	if now.Sub(b.at) < barEvery {
		return
	}
	b.measure(now)
	line := barLine(b.what, b.done, b.total, now.Sub(b.start), b.rate, b.width())
	fmt.Fprint(b.w, "\r"+line+eraseRight)
	b.drawn = true
}

// measure brings the rate up to date: first the mean since the start, then a moving mean.
func (b *bar) measure(now time.Time) {
	elapsed := now.Sub(b.start)
	if elapsed < barNoRate {
		b.at = now
		b.atN = b.done
		return
	}
	if b.rate == 0 {
		b.rate = float64(b.done) / elapsed.Seconds()
	} else {
		step := now.Sub(b.at).Seconds()
		weight := 1 - math.Exp(-step/barSmooth.Seconds())
		b.rate += weight * (float64(b.done-b.atN)/step - b.rate)
	}
	b.at, b.atN = now, b.done
}

// clear takes the bar off the terminal.
func (b *bar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn {
		fmt.Fprint(b.w, "\r"+eraseRight)
	}
}

// barLine returns a bar of fewer than width characters, since a full line wraps on some terminals.
// A narrow terminal loses the rate first, then the bytes, the time left and the cells.
func barLine(what string, done, total int64, elapsed time.Duration, rate float64, width int) string {
	share := 1.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	head := fmt.Sprintf("%s %3.0f %%", what, math.Floor(100*share))
	size := fileio.FormatBytes(done) + " of " + fileio.FormatBytes(total)
	spent := elapsed.Round(time.Second).String() + " elapsed"
	parts := []string{size, spent}
	if rate > 0 {
		left := time.Duration(float64(max(0, total-done)) / rate * float64(time.Second))
		times := spent + ", " + left.Round(time.Second).String() + " left"
		parts = []string{fileio.FormatBytes(int64(rate)) + "/s", size, times}
	}
	for {
		text := strings.Join(parts, "  ")
		room := width - 1 - utf8.RuneCountInString(head) - utf8.RuneCountInString(text) - 6
		if room >= barMinCells && len(parts) > 0 {
			return head + "  " + barCells(share, min(room, barMaxCells)) + "  " + text
		}
		if len(parts) == 0 {
			return string([]rune(head)[:max(0, min(utf8.RuneCountInString(head), width-1))])
		}
		parts = parts[1:]
	}
}

// paceText says how long n bytes took, and their rate where the time is long enough for one. The
// unit of the rate begins with "/s".
func paceText(n int64, seconds float64, unit string) string {
	text := fmt.Sprintf(" in %.1f s", seconds)
	if seconds < 0.95 {
		text = fmt.Sprintf(" in %.0f ms", 1000*seconds)
	}
	if seconds >= barNoRate.Seconds() {
		text += " (" + fileio.FormatBytes(int64(float64(n)/seconds)) + unit + ")"
	}
	return text
}

// barCells draws a share as n cells between two edges.
func barCells(share float64, n int) string {
	full := int(share * float64(n))
	return "▕" + strings.Repeat("█", full) + strings.Repeat(" ", n-full) + "▏"
}
