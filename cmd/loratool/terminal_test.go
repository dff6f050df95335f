package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestDocumentsHaveNoHiddenCharacters: a document of JSON says what its strings hold, in printable
// characters alone.
func TestDocumentsHaveNoHiddenCharacters(t *testing.T) {
	const text = "C1 \u009b31m, bidi \u202e\u2066, no width \u200b\u200d\ufeff, tags \U000e0041, \x1b\x7f; é 漢 😀 stay"
	var out strings.Builder
	term := &terminal{out: &results{w: &out}}
	if err := term.document("test", map[string]any{text: text}); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && clean(string(r)) != string(r) {
			t.Errorf("the document holds %U", r)
		}
	}
	if !strings.Contains(out.String(), "é 漢 😀 stay") {
		t.Errorf("printable characters are escaped: %s", out.String())
	}
	var doc map[string]any
	if err := json.Unmarshal([]byte(out.String()), &doc); err != nil || doc[text] != text {
		t.Errorf("the document reads as %v, %q, want %q", err, doc[text], text)
	}
}

// TestMessagesHaveColourOnATerminalOnly: the word alone has it, and NO_COLOR, TERM=dumb, a pipe and
// JSON have none.
func TestMessagesHaveColourOnATerminalOnly(t *testing.T) {
	const coloured = "loratool: \x1b[31merror\x1b[0m: \\x1b[32mno\n"
	const bare = "loratool: error: \\x1b[32mno\n"
	for _, c := range []struct {
		name, noColour, term string
		seen, json           bool
		want                 string
	}{
		{"a terminal", "", "xterm", true, false, coloured},
		{"NO_COLOR", "1", "xterm", true, false, bare},
		{"TERM=dumb", "", "dumb", true, false, bare},
		{"a pipe", "", "xterm", false, false, bare},
		{"JSON", "", "xterm", true, true, bare},
	} {
		t.Setenv("NO_COLOR", c.noColour)
		t.Setenv("TERM", c.term)
		var out strings.Builder
		term := &terminal{out: &results{w: &out}, err: &out, seen: c.seen, json: c.json}
		term.message("error", "\x1b[32mno")
		if out.String() != c.want {
			t.Errorf("%s: the message is %q, want %q", c.name, out.String(), c.want)
		}
	}
}
