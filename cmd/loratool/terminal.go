package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
	"golang.org/x/term"
)

// terminal is where results and messages go.
type terminal struct {
	out        *results
	err        io.Writer
	json       bool
	command    string
	usage      string            // of the command
	roles      map[string]string // what the paths of the command line are: BASE, ADAPTER, --base
	documented bool              // the one document of the run is printed
	columns    int               // of the terminal, where out and err are no files
	seen       bool              // out and err count as terminals
	seconds    float64           // that every step takes in a test; 0 is the true time
}

// stopwatch returns a function that returns the seconds since now.
func (t *terminal) stopwatch() func() float64 {
	start := time.Now()
	return func() float64 {
		if t.seconds > 0 {
			return t.seconds
		}
		return time.Since(start).Seconds()
	}
}

// results is standard output. It keeps the first error of a write, which then fails the command:
// output that failed to print must not count as success.
type results struct {
	w   io.Writer
	err error
}

func (r *results) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.w.Write(p)
	if err != nil {
		r.err = &resultsError{err}
		return n, r.err
	}
	return n, nil
}

// WriteString is Write; the error is kept.
func (r *results) WriteString(s string) { r.Write([]byte(s)) }

// resultsError is a failure to print the results of a command.
type resultsError struct{ err error }

func (e *resultsError) Error() string { return "cannot print all results: " + e.err.Error() }
func (e *resultsError) Unwrap() error { return e.err }

// clean makes text from files harmless. It escapes characters that are not printable, which could
// control a terminal or fake a line.
func clean(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// line prints a line of a result. Where a terminal is too narrow for it, the line breaks at spaces,
// and goes on below the text after its label. Strings among the arguments are cleaned.
func (t *terminal) line(format string, args ...any) {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = clean(s)
		}
	}
	text := fmt.Sprintf(format, args...)
	width := t.width()
	if width == 0 || utf8.RuneCountInString(text) <= width {
		t.out.WriteString(text + "\n")
		return
	}
	head := label.FindString(text)
	if len(head) > width/2 {
		head = ""
	}
	indent := strings.Repeat(" ", len(head))
	t.out.WriteString(head + strings.Join(wrap(text[len(head):], width-len(indent)), "\n"+indent) + "\n")
}

// label is the word before the text of a line, with the spaces that make a column of it.
var label = regexp.MustCompile(`^[a-z ]*  +`)

// message prints one line to stderr: loratool: kind: text. Options of the library become flags. The
// kind has a colour on a terminal, unless the run prints JSON.
func (t *terminal) message(kind, text string) {
	if colour := kindColours[kind]; colour != "" && !t.json && t.hasColour(t.err) {
		kind = colour + kind + plain
	}
	text = clean(strings.ReplaceAll(flagsFor(text), "\n", "; "))
	fmt.Fprintf(t.err, "loratool: %s: %s\n", kind, text)
}

// fail reports the error that ends the command. After --json it also prints a document to stdout.
func (t *terminal) fail(err error, hint string) {
	t.message("error", err.Error())
	if hint != "" {
		t.message("hint", hint)
	}
	if t.json && !t.documented { // one run prints one document
		t.document(t.command, map[string]any{"error": failedWith(err, hint)})
	}
}

// show prints the report of a command, as one JSON document or as text.
func (t *terminal) show(command string, asJSON bool, report any, text func()) error {
	if asJSON {
		return t.document(command, report)
	}
	text()
	return nil
}

// document prints one JSON document: the fields of value, after schema and command.
func (t *terminal) document(command string, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	head := fmt.Sprintf(`{"schema":1,"command":%s`, strconv.Quote(command))
	if len(body) > 2 {
		head += ","
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, append([]byte(head), body[1:]...), "", "  "); err != nil {
		return err
	}
	pretty.WriteByte('\n')
	t.documented = true
	_, err = t.out.Write(escapeHidden(pretty.Bytes()))
	return err
}

// escapeHidden replaces characters that terminals hide or act on by escapes of JSON: C1 controls,
// marks of the writing direction, characters without width. All of them lie in strings.
func escapeHidden(doc []byte) []byte {
	escaped := make([]byte, 0, len(doc))
	for _, r := range string(doc) {
		switch {
		case r < 0x7f || unicode.IsPrint(r):
			escaped = utf8.AppendRune(escaped, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
	}
	return escaped
}

// hasColour reports whether w is a terminal whose user has not asked for plain text
// (no-color.org).
func (t *terminal) hasColour(w io.Writer) bool {
	return t.isSeen(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isSeen reports whether w is a terminal, or stands for one in a test.
func (t *terminal) isSeen(w io.Writer) bool { return t.seen || isTerminal(w) }

// width returns the number of columns of the terminal, 0 if the output goes elsewhere.
func (t *terminal) width() int { return t.widthOf(t.out.w) }

func (t *terminal) widthOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return t.columns
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return n
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows a bar on a terminal. add may be called from several goroutines.
func (t *terminal) progress(o *common, total int64, what string) (add func(int64), finish func()) {
	if o.quiet || o.noProgress || !t.isSeen(t.err) {
		return nil, func() {}
	}
	now := time.Now()
	b := &bar{w: t.err, width: func() int { return t.widthOf(t.err) }, now: time.Now,
		what: what, total: total, start: now, at: now}
	return b.add, b.clear
}

// bars shows a bar for each work that begins, in place of the one before.
func (t *terminal) bars(o *common) (begin report.Begin, finish func()) {
	end := func() {}
	begin = func(work string, total int64) func(int64) {
		end()
		var add func(int64)
		if add, end = t.progress(o, total, work); add == nil {
			return func(int64) {}
		}
		return add
	}
	return begin, func() { end() }
}

// countText is a number of things, in full, with separators.
func countText(n int64) string {
	text, _, _ := strings.Cut(fault.Count(n, ""), " ")
	return text
}

// percent is a share with two significant digits.
func percent[F ~float64](share F) string {
	x := float64(share)
	if x == 0 {
		return "0 %"
	}
	if x >= 0.995 {
		return fmt.Sprintf("%.0f %%", 100*x)
	}
	return fmt.Sprintf("%.2g %%", 100*x)
}
