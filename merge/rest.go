package merge

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/undo"
)

// checkRest compares the data that the latest removed merge left alone with the checksums in its
// record. This covers earlier merges as well: an earlier record begins where the later one ends.
func checkRest(ctx context.Context, p *Plan) error {
	latest := p.removed.records[0]
	changed := make([][]undo.Range, len(p.files))
	for i := range latest.record.Tensors {
		d := &latest.record.Tensors[i]
		ref, _ := p.stored.Lookup(d.Name) // addRecord has found it
		n := d.Elements() * int64(ref.Tensor.DType.Size())
		changed[ref.File] = append(changed[ref.File], undo.Range{Off: ref.Tensor.Off, N: n})
	}
	var pieces []restPiece
	for i := range latest.record.Files {
		file := fileOf(p.base, latest.record, i)
		in := p.stored.Files[file]
		slices.SortFunc(changed[file], func(a, b undo.Range) int { return cmp.Compare(a.Off, b.Off) })
		ranges, sums := undo.Rest(in.DataOff, in.Size, changed[file]), latest.record.Files[i].Rest
		if len(sums) != len(ranges) {
			return &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleRest, Path: latest.Name,
				Msg: fmt.Sprintf("%s for %s of %q", fault.Count(len(sums), "checksum"), fault.Count(len(ranges), "unchanged range"), in.Name)}
		}
		for k, g := range ranges {
			pieces = append(pieces, restPiece{g, file, sums[k]})
		}
	}
	bufs := make([][]byte, min(parallel.Workers(p.options.Workers), len(pieces)))
	return parallel.For(ctx, len(bufs), len(pieces), func(w, i int) error {
		if bufs[w] == nil {
			bufs[w] = make([]byte, defaultBlockBytes)
		}
		return pieces[i].check(ctx, p.stored.Files[pieces[i].file], bufs[w])
	})
}

// restPiece is an unchanged range of a file, with its CRC-32.
type restPiece struct {
	undo.Range
	file int
	want uint32
}

// check compares the range with its checksum.
func (piece *restPiece) check(ctx context.Context, in *checkpoint.File, buf []byte) error {
	sum, err := piece.Sum(ctx, in.ReaderAt(ctx), buf)
	if err != nil || sum == piece.want {
		return fault.InFile(err, in.Path)
	}
	e := fault.New(fault.Mismatch, "the merge left bytes %d to %d (from %q on) alone, but their CRC-32 is %08x, and the record says %08x",
		piece.Off, piece.Off+piece.N-1, in.TensorAt(piece.Off), sum, piece.want).In(in.Path)
	e.Rule = undo.RuleValues
	return e.WithHint("the checkpoint was edited or damaged after the merge; only an intact one can be restored exactly")
}
