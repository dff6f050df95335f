package quant

import (
	"slices"
	"strings"
)

// Recognise finds the quantised weights among the tensors of a checkpoint, of all its files. read
// reads a small tensor whole: bitsandbytes stores the shape of a weight in one. A weight that is
// stored wrongly or in another way is among Found.Refused, and its tensors are in no Weight:
// programs that only copy them need not know more. The only errors are those of read.
func Recognise(tensors []Tensor, c Config, read func(name string) ([]byte, error)) (Found, error) {
	f := newFinder(tensors, c, read)
	for _, scheme := range schemes {
		for _, t := range f.sorted {
			if t.claimed {
				continue
			}
			if err := scheme(f, t.Tensor); err != nil {
				return Found{}, err
			}
		}
	}
	slices.SortFunc(f.found.Weights, func(a, b Weight) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(f.found.Refused, func(a, b Refusal) int { return strings.Compare(a.Name, b.Name) })
	return f.found, nil
}

// schemes are asked about every tensor that none before them has claimed.
var schemes = []func(*finder, *Tensor) error{
	(*finder).bitsandbytes4, (*finder).bitsandbytes8, (*finder).gptOSS, (*finder).deepSeekV4,
	findPacked, findBytes, findModelOpt, findTorchAO, findQuanto,
	findGPTQ, findMLX, findHQQ,
	(*finder).others, (*finder).fp8, (*finder).leftovers,
}
