package merge_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/merge"
)

// TestFilesForServersMergeAsTheirSource writes every adapter of testdata/peft for vLLM, and those
// with experts for SGLang. Each is refused by name or merges to the same bytes as its source,
// unless a remark says that a scale is rounded.
func TestFilesForServersMergeAsTheirSource(t *testing.T) {
	exact, refused := 0, 0
	eachFixture(t, "merge", 100, func(t *testing.T, dir string, c fixture) {
		if len(c.Adapters) != 1 || c.Options.ExpertsSlowest {
			return // no server reads lora_B as only a flag of merge says
		}
		var direct string
		servers := []string{"vllm"}
		if strings.Contains(dir, "experts") {
			servers = append(servers, "sglang") // which differs in these alone
		}
		for _, server := range servers {
			out, remarks, err := c.serve(t, dir, server)
			switch {
			case errors.Is(err, format.ErrUnsupported):
				refused++
				continue
			case err != nil:
				t.Fatal(err)
			case strings.Contains(remarks, "holds its scale exactly"):
				continue
			}
			if direct == "" {
				p, err := c.open(t, dir, merge.Options{})
				direct = run(t, p, err)
			}
			served := c
			served.Adapters = []string{out}
			p, err := served.open(t, "", merge.Options{AnyBase: true})
			compareTensors(t, run(t, p, err), direct)
			exact++
		}
	})
	if exact < 65 || refused < 80 {
		t.Errorf("%d files merge to the same bytes and %d are refused, want 65 and 80 or more", exact, refused)
	}
}

// serve writes the adapter of a case for a server.
func (c fixture) serve(t *testing.T, dir, server string) (out, remarks string, err error) {
	t.Helper()
	src, err := convert.Open(t.Context(), filepath.Join(dir, c.Adapters[0]), convert.Options{})
	if err != nil {
		return "", "", err
	}
	defer src.Close()
	var o convert.CreateOptions
	if o.Loader, err = convert.LoaderNamed(server); err != nil {
		return "", "", err
	}
	base := filepath.Join(fixtures, "bases", c.Base)
	o.BaseConfig, _ = os.ReadFile(filepath.Join(base, "config.json")) // without one, the base is unknown
	out = filepath.Join(t.TempDir(), "served")
	all, err := convert.Remarks(t.Context(), out, convert.PEFT(), src, o)
	if err != nil {
		return "", "", err
	}
	sink, err := convert.Create(out, convert.PEFT(), o)
	if err != nil {
		return "", "", err
	}
	return out, strings.Join(all, "; "), format.Copy(t.Context(), sink, src)
}
