package card

import (
	"reflect"
	"strings"
	"testing"
)

func TestCardsTellLicenceBaseAndDatasets(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Card
	}{
		{"a card of PEFT", "---\nbase_model: roberta-base\nlibrary_name: peft\nlicense: mit\ntags:\n- lora\n---\n# Model\n", Card{"mit", []string{"roberta-base"}, nil}},
		{"lists", "---\nbase_model:\n- a/b\n- c/d\ndatasets: [x, y]\nlicense: [apache-2.0]\n---", Card{"apache-2.0", []string{"a/b", "c/d"}, []string{"x", "y"}}},
		{"line ends of Windows, and a mark", "\ufeff---\r\nlicense: other\r\n---\r\n", Card{License: "other"}},
		{"null and numbers", "---\nlicense: null\nbase_model: 7\ndatasets: [1, z]\n---\n", Card{Datasets: []string{"z"}}},
		{"no front matter", "# Model\nlicense: mit\n", Card{}},
		{"no end", "---\nlicense: mit\n", Card{}},
		{"no YAML", "---\nlicense: [mit\n---\n", Card{}},
		{"no map", "---\n- license\n---\n", Card{}},
		{"aliases", "---\na: &a [x, x]\nlicense: mit\nb: *a\n---\n", Card{}},
		{"too long", "---\nlicense: mit\na: " + strings.Repeat("x", maxBytes) + "\n---\n", Card{}},
		{"nothing", "", Card{}},
	} {
		if got := Parse([]byte(c.text)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: the card is %+v, want %+v", c.name, got, c.want)
		}
	}
}

func FuzzCard(f *testing.F) {
	f.Add([]byte("---\nlicense: mit\ndatasets:\n- x\n---\n"))
	f.Fuzz(func(t *testing.T, text []byte) { Parse(text) })
}
