package quant

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// Recognise finds the quantised weights among the tensors of a checkpoint, of all its files. read
// reads a small tensor whole: bitsandbytes stores the shape of a weight in one. A weight that is
// stored wrongly or in another way is among Found.Refused, and its tensors are in no Weight:
// programs that only copy them need not know more. The only errors are those of read.
func Recognise(tensors []Tensor, c Config, read func(name string) ([]byte, error)) (Found, error) {
	f := newFinder(tensors, c, read)
	for _, scheme := range schemes {
		for i := range f.sorted {
			t := &f.sorted[i]
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
	findPacked, findBytes, findModelOpt, findModelOptExperts, findTorchAO, findQuanto,
	findGPTQ, findMLX, findHQQ,
	(*finder).others, (*finder).fp8, (*finder).leftovers,
}

// IsMark reports whether a tensor shows that its checkpoint may be quantised: no tensor of a plain
// one has its dtype or its name. Most checkpoints have none, and Recognise finds nothing there.
func IsMark(name string, d dtype.Type) bool {
	if !d.IsFloat() || d.Bits() < 16 {
		return true
	}
	return slices.ContainsFunc(marks, func(mark string) bool { return strings.HasSuffix(name, mark) })
}

// codeTails are the endings by which schemes that are read know their codes. In a broken file they
// can have any dtype.
var codeTails = []string{".qweight", ".weight_packed", ".W_q", "._weight_qdata", "._data", ".SCB"}

// marks are the endings of names that only tensors of quantised weights have, whatever their dtype.
var marks = func() []string {
	all := append(slices.Clone(leftoverTails), codeTails...)
	for i := range otherSchemes {
		if o := &otherSchemes[i]; o.mark != ".weight" { // whose codes are no floats
			all = append(all, o.mark)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}()
