package naming

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// IsConvolution reports whether the name of a module, with dots or underscores, is one that image
// models give to convolutions of more than one point: those of diffusers and of LDM's U-Net, and
// the patches of transformers.
func IsConvolution(module string) bool {
	return convolution.MatchString(strings.ReplaceAll(module, ".", "_"))
}

var convolution = regexp.MustCompile(
	`(^|_)(conv|conv1|conv2|conv_in|conv_out|in_layers_2|out_layers_3|op|input_blocks_0_0|out_2|patch_embedding|pos_embed_proj|x_embedder_proj)$`)

// DiagnoseConvolution explains why the factors of a convolution, with shapes a and b, do not fit
// its weight in the base, of shape w. ok is false if the shapes do not tell.
//
// A convolution in g groups has the weight out×(in/g)×k…: each output reads only the inputs of its
// group. The product of A, r×in×k…, and B updates all inputs, and the weight has no place for them.
func DiagnoseConvolution(module string, w, a, b []uint64) (d Diagnosis, ok bool) {
	if len(a) < 3 || len(a) != len(b) {
		return Diagnosis{}, false
	}
	isPoint := !slices.ContainsFunc(a[2:], func(n uint64) bool { return n != 1 })
	switch {
	case len(w) == 2 && isPoint && b[0] == w[0] && a[1] == w[1]:
		return Diagnosis{
			fmt.Sprintf("%q is a linear layer in the base, and the adapter has it as a convolution of kernel 1", module),
			"squeeze its lora_A and lora_B in Python to remove the dimensions of 1, then save the adapter again",
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
