package naming

import (
	"fmt"
	"slices"
)

// DiagnoseConvolution says why the factors a and b of a convolution, by their shapes, do not fit
// the shape w of its weight in the base; ok is false where the shapes do not tell.
//
// A convolution in g groups has the weight out×(in/g)×k…: an output reads the inputs of its group
// alone. The product of A, r×in×k…, and B is an update of all inputs, for which it has no place.
func DiagnoseConvolution(module string, w, a, b []uint64) (d Diagnosis, ok bool) {
	if len(a) < 3 || len(a) != len(b) {
		return Diagnosis{}, false
	}
	isPoint := !slices.ContainsFunc(a[2:], func(n uint64) bool { return n != 1 })
	switch {
	case len(w) == 2 && isPoint && b[0] == w[0] && a[1] == w[1]:
		return Diagnosis{
			fmt.Sprintf("%q is a linear layer in the base, and the adapter has it as a convolution of kernel 1", module),
			"drop the dimensions of 1 from its lora_A and lora_B in Python (squeeze), and save the adapter again",
		}, true
	case len(w) != len(a) || b[0] != w[0]:
		return Diagnosis{}, false
	case slices.Equal(a[2:], w[2:]) && w[1] > 0 && a[1] > w[1] && a[1]%w[1] == 0:
		return Diagnosis{
			fmt.Sprintf("%q is a convolution in %d groups: A reads all %d input channels, and the weight "+
				"has places for %d of them per output", module, a[1]/w[1], a[1], w[1]),
			"serve the adapter unmerged",
		}, true
	case !slices.Equal(a[2:], w[2:]) && a[1] == w[1]:
		return Diagnosis{
			fmt.Sprintf("%q is a convolution of kernel %d in the base, and of kernel %d in the adapter",
				module, w[2:], a[2:]),
			"",
		}, true
	}
	return Diagnosis{}, false
}
