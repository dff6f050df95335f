package convert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// scale sets the scale of a layer: from the file, from the user, or by the rule of the dialect for
// a file that does not say it.
func (p *pairReader) scale(l *format.Layer) error {
	l.Scaling = format.AlphaOverR
	i, ok := l.Roles[format.RoleAlpha]
	if !ok {
		return p.scaleUnsaid(l)
	}
	alpha, err := readAlpha(p.values, &p.tensors[i], i)
	if err != nil {
		return err
	}
	if c, name := p.configOf(l.Module); c != nil {
		p.scaleByConfig(l, c, name)
		if l.Alpha != alpha {
			return fault.New(fault.Unsupported, "%s is %v, and %s in the header says %v",
				p.tensors[i].Name, alpha, diffusersMetadata, l.Alpha).
				WithHint("remove the one that the training did not use")
		}
	}
	l.Alpha, p.scales.said = alpha, p.tensors[i].Name
	if alpha == 0 {
		p.scales.zero++
	}
	return nil
}

// headerAlpha is the entry of __metadata__ in which one producer keeps the alpha of all layers.
const headerAlpha = "alpha"

func (p *pairReader) scaleUnsaid(l *format.Layer) error {
	text, inHeader := p.metadata[headerAlpha]
	c, name := p.configOf(l.Module)
	switch {
	case c != nil:
		p.scaleByConfig(l, c, name)
		p.scales.said = diffusersMetadata + " in the header"
		return nil
	case p.beside != nil:
		p.beside.set(p, l)
		return nil
	case inHeader:
		alpha, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(alpha) || math.IsInf(alpha, 0) {
			return fault.New(fault.Corrupt, "%q in the header is %q, want a finite number",
				headerAlpha, text)
		}
		l.Alpha, p.scales.said = alpha, headerAlpha+" in the header"
		return nil
	case p.options.Alpha != 0:
		l.Alpha = p.options.Alpha
	case p.options.Scale != 0:
		l.Scaling, l.Fixed = format.Fixed, p.options.Scale
	case p.needsScale:
		return errNoScale
	default:
		l.Alpha = float64(l.Rank)
	}
	p.scales.unsaid = append(p.scales.unsaid, l.Module)
	return nil
}

// set gives a layer the scale.
func (b *besideScale) set(p *pairReader, l *format.Layer) {
	p.scales.said = b.file
	if l.Alpha = b.alpha; !b.hasAlpha {
		l.Scaling, l.Fixed = format.Fixed, b.scale
	}
	if b.rank != 0 && l.Kind != format.Other && b.rank != l.Rank {
		p.require(format.FeatureRankMismatch,
			fmt.Sprintf("%s: A has rank %d, %s says %d", l.Module, l.Rank, b.file, b.rank))
	}
}

// errNoScale reports an adapter whose scale nothing says.
var errNoScale = errors.New("nothing says the scale")

// finishScales checks the scales of all layers together.
func (p *pairReader) finishScales() error {
	s := &p.scales
	if s.said != "" && s.unsaid == nil {
		if err := p.options.refuseScale(s.said); err != nil {
			return err
		}
	}
	if s.zero > 0 {
		p.note("alpha is 0 in %s, where merging changes nothing; set it to that of the training",
			fault.Count(s.zero, "layer"))
	}
	isByRule := p.options.Alpha == 0 && p.options.Scale == 0
	switch {
	case s.unsaid == nil || !isByRule:
	case s.said != "":
		p.note("%d of %s %s no alpha, unlike the others; by the rule of the dialect %s the scale is 1 there "+
			"(Options.Alpha or Options.Scale gives another): %s", len(s.unsaid), fault.Count(len(p.out.Layers), "layer"),
			fault.Choose(len(s.unsaid), "has", "have"), p.dialect, fault.List(s.unsaid, 3))
	default:
		p.note("the file does not say its scale; by the rule of the dialect %s it is 1 for every "+
			"layer (Options.Alpha or Options.Scale gives another)", p.dialect)
	}
	return nil
}

// refuseScale returns an error if the user gives a scale for an adapter that has its own.
func (o *Options) refuseScale(source string) error {
	if o.Alpha == 0 && o.Scale == 0 {
		return nil
	}
	return fault.New(fault.Mismatch, "Options.Alpha and Options.Scale are for adapters that do "+
		"not say their scale, and this one says it (%s)", source).
		WithHint("leave them out; if another adapter of the same command needs them, convert " +
			"that one to a .lora file first")
}

// readAlpha returns the number that an alpha tensor holds.
func readAlpha(src format.Source, t *format.Tensor, i int) (float64, error) {
	if t.Elements() != 1 {
		return 0, fault.New(fault.Unsupported, "%s has shape %d, want a single number",
			t.Name, t.Shape)
	}
	p := make([]byte, t.NBytes())
	if err := src.ReadBlobAt(p, i, 0); err != nil {
		return 0, err
	}
	switch {
	case t.DType.IsFloat():
		alpha := dtype.Load(t.DType, p, 0)
		if math.IsNaN(alpha) || math.IsInf(alpha, 0) {
			return 0, fault.New(fault.Corrupt, "%s is %v, want a finite number", t.Name, alpha).
				WithHint("the training diverged, or the file is damaged")
		}
		return alpha, nil
	case t.DType == dtype.I64:
		return float64(int64(binary.LittleEndian.Uint64(p))), nil
	case t.DType == dtype.I32:
		return float64(int32(binary.LittleEndian.Uint32(p))), nil
	}
	return 0, fault.New(fault.Unsupported, "%s has dtype %v, want F64, F32, F16, BF16, I64 or I32",
		t.Name, t.DType)
}
