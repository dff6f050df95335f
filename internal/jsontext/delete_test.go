package jsontext_test

import (
	"testing"

	"github.com/loratool/loratool/internal/jsontext"
)

// TestDeleteKeepsAllOtherBytes removes members from the start, the middle and the end.
func TestDeleteKeepsAllOtherBytes(t *testing.T) {
	const object = "{\n  \"a\": 1,\n  \"q\": {\"b\": [2, 3], \"c\": \"q\"},\n  \"z\": \"q\"\n}\n"
	for _, c := range []struct {
		text string
		path []string
		want string
	}{
		{object, []string{"a"}, "{\n  \"q\": {\"b\": [2, 3], \"c\": \"q\"},\n  \"z\": \"q\"\n}\n"},
		{object, []string{"q"}, "{\n  \"a\": 1,\n  \"z\": \"q\"\n}\n"},
		{object, []string{"z"}, "{\n  \"a\": 1,\n  \"q\": {\"b\": [2, 3], \"c\": \"q\"}\n}\n"},
		{object, []string{"q", "b"}, "{\n  \"a\": 1,\n  \"q\": {\"c\": \"q\"},\n  \"z\": \"q\"\n}\n"},
		{object, []string{"q", "c"}, "{\n  \"a\": 1,\n  \"q\": {\"b\": [2, 3]},\n  \"z\": \"q\"\n}\n"},
		{object, []string{"none"}, object},
		{object, []string{"none", "a"}, object},
		{`{"a":1}`, []string{"a"}, `{}`},
		{`{"\u0061":1,"b":2}`, []string{"a"}, `{"\u0061":null,"b":2}`},
	} {
		if got := string(jsontext.Delete([]byte(c.text), c.path...)); got != c.want {
			t.Errorf("Delete(%s, %q) = %s, want %s", c.text, c.path, got, c.want)
		}
	}
}
