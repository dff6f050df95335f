package safetensors_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
)

// TestReadEndsWithTheContext: a header of many tensors, and one of much metadata, look at the
// context while they are read from the file and while they are scanned.
func TestReadEndsWithTheContext(t *testing.T) {
	var tensors, metadata strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&tensors, `,"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, i)
		fmt.Fprintf(&metadata, `,"%d":""`, i)
	}
	for what, c := range map[string]struct {
		header string
		least  int
	}{
		"tensors":  {"{" + tensors.String()[1:] + "}", 35},
		"metadata": {`{"__metadata__":{` + metadata.String()[1:] + "}}", 16},
	} {
		file := testkit.Raw(c.header, nil)
		t.Run(what, func(t *testing.T) {
			testkit.EndsAnywhere(t, c.least, 1, func(ctx context.Context) error {
				_, err := safetensors.Read(ctx, bytes.NewReader(file), int64(len(file)))
				return err
			})
		})
	}
}
