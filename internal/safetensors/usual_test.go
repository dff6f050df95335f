package safetensors_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
)

// TestMembersInAnyOrder: entries as the format's own writer spells them are read in a faster way,
// which gives the same tensors, and the same errors, as the one for any other spelling.
func TestMembersInAnyOrder(t *testing.T) {
	for _, c := range []struct{ dtype, shape, offsets string }{
		{`"F32"`, `[2,3]`, `[0,24]`},
		{`"F32"`, `[]`, `[0,4]`},
		{`"BF16"`, `[1,2,1,2,1]`, `[0,8]`},
		{`"U8"`, `[0]`, `[0,0]`},
		{`"U8"`, `[1,]`, `[0,1]`},
		{`"U8"`, `[,1]`, `[0,1]`},
		{`"U8"`, `[01]`, `[0,1]`},
		{`"U8"`, `[1]`, `[0,1,2]`},
		{`"U8"`, `[1]`, `[0]`},
		{`"U8"`, `[1]`, `[2,1]`},
		{`"U8"`, `[1]`, `[00,1]`},
		{`"U8"`, `[-1]`, `[0,1]`},
		{`"U8"`, `[1.0]`, `[0,1]`},
		{`"U8"`, `[9223372036854775808]`, `[0,1]`},
		{`"U8"`, `[999999999999999999]`, `[0,999999999999999999]`},
		{`"U8"`, `[1]`, `[0,18446744073709551617]`},
		{`"U9"`, `[1]`, `[0,1]`},
		{`"U8`, `[1]`, `[0,1]`},
		{`8`, `[1]`, `[0,1]`},
		{`"U8"`, `[1`, `[0,1]`},
		{`"U8"`, ``, `[0,1]`},
	} {
		usual := fmt.Sprintf(`{"a":{"dtype":%s,"shape":%s,"data_offsets":%s}}`, c.dtype, c.shape, c.offsets)
		// A space at a place where it changes no position of an error before it.
		other := strings.Replace(usual, `"data_offsets":`, `"data_offsets": `, 1)
		got, gotErr := safetensors.ReadAlone(testkit.Raw(usual, nil))
		want, wantErr := safetensors.ReadAlone(testkit.Raw(other, nil))
		if (gotErr == nil) != (wantErr == nil) {
			t.Errorf("%s: %v, with a space %v", usual, gotErr, wantErr)
			continue
		}
		if gotErr != nil {
			continue
		}
		x, y := got.Tensors[0], want.Tensors[0]
		if x.DType != y.DType || !reflect.DeepEqual(append([]uint64{}, x.Shape...), append([]uint64{}, y.Shape...)) || x.NBytes != y.NBytes {
			t.Errorf("%s: %+v, with a space %+v", usual, x, y)
		}
	}
}
