package merge

import (
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/undo"
)

// restored is the header that a file had before what is taken out was merged.
type restored struct {
	identity undo.Header
	raw      []byte // nil for a file that does not change
	header   *safetensors.Header
}

// restoreHeaders reads the headers of the files, as they are before anything is put in.
func (p *Plan) restoreHeaders() error {
	changed := make([]bool, len(p.base.Files))
	for _, t := range p.targets {
		changed[t.ref.File] = true
	}
	p.restored = make([]*restored, len(p.base.Files))
	for i, f := range p.base.Files {
		p.restored[i] = &restored{header: f.Header}
		if !changed[i] && !p.options.wantsRecord() {
			continue
		}
		raw, err := rawHeader(f)
		if err != nil {
			return err
		}
		p.restored[i].identity = undo.HeaderOf(raw)
		if changed[i] {
			p.restored[i].raw = raw
		}
	}
	for _, r := range p.records { // the earliest merge comes last and has the last word
		for i := range r.record.Files {
			if !r.record.Files[i].Changed() {
				continue
			}
			raw, err := r.record.HeaderBytes(i)
			if err != nil {
				return fault.InFile(err, r.Name)
			}
			h, err := safetensors.ReadAlone(raw)
			if err != nil {
				return fault.InFile(err, r.Name)
			}
			f := p.fileOf(r.record, i)
			if !sameTensors(h, p.base.Files[f].Header) {
				return &fault.Error{Kind: fault.Corrupt, Rule: undo.RuleBefore, Path: r.Name, Msg: fmt.Sprintf("the header before the merge has other tensors than %s", p.base.Files[f].Path)}
			}
			p.restored[f] = &restored{r.record.Files[i].Before, raw, h}
		}
	}
	if p.nRemoved > 0 && p.records == nil {
		return p.removeStamps()
	}
	return nil
}

// removeStamps takes from the headers the stamps of the merge that is taken out, the last ones.
func (p *Plan) removeStamps() error {
	for _, r := range p.restored {
		history := checkpoint.HistoryOf("", r.header)
		if r.raw == nil || len(history) == 0 {
			continue
		}
		last := &history[len(history)-1]
		if !slices.ContainsFunc(last.Adapters, func(a StampAdapter) bool { return slices.Contains(p.ids[:p.nRemoved], a.Content) }) {
			continue
		}
		raw := r.header.WithoutMetadata(r.raw, last.Key)
		h, err := safetensors.ReadAlone(raw)
		if err != nil {
			return err
		}
		r.raw, r.header = raw, h
	}
	return nil
}

func rawHeader(f *checkpoint.File) ([]byte, error) {
	raw := make([]byte, f.Header.DataOff)
	_, err := io.ReadFull(io.NewSectionReader(f.Data, 0, int64(len(raw))), raw)
	return raw, fault.InFile(err, f.Path)
}

// sameTensors reports whether two headers have the same tensors in the same order of their data.
func sameTensors(a, b *safetensors.Header) bool {
	byName := func(h *safetensors.Header) []safetensors.Tensor {
		all := slices.Clone(h.Tensors)
		sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
		return all
	}
	return slices.EqualFunc(byName(a), byName(b), func(s, t safetensors.Tensor) bool {
		return s.Name == t.Name && s.DType == t.DType && slices.Equal(s.Shape, t.Shape) && s.Off-a.DataOff == t.Off-b.DataOff
	})
}
