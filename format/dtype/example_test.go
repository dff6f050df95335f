package dtype_test

import (
	"fmt"

	"github.com/loratool/loratool/format/dtype"
)

// Round a number once to the nearest BF16 value, and read it back.
func Example() {
	t, ok := dtype.Parse("BF16")
	if !ok {
		return
	}
	p := make([]byte, t.Size())
	dtype.Store(t, p, 0, 1.005)
	fmt.Printf("%v % x %v\n", t, p, dtype.Load(t, p, 0))
	// Output:
	// BF16 81 3f 1.0078125
}
