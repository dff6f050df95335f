package convert

import (
	"strconv"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// pairScales remembers where the scales of the layers come from.
type pairScales struct {
	said   string // what in the file says a scale
	unsaid int    // layers whose scale comes from the dialect's rule or from the user
	zero   int    // layers of alpha 0
}

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
	switch {
	case inHeader:
		alpha, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fault.New(fault.Corrupt, "%q in the header is %q, want a finite number",
				headerAlpha, text)
		}
		l.Alpha, p.scales.said = alpha, headerAlpha+" in the header"
		return nil
	case p.options.Alpha != 0:
		l.Alpha = p.options.Alpha
	case p.options.Scale != 0:
		l.Scaling, l.Fixed = format.Fixed, p.options.Scale
	default:
		l.Alpha = float64(l.Rank)
	}
	p.scales.unsaid++
	return nil
}

// finishScales checks the scales of all layers together.
func (p *pairReader) finishScales() error {
	s := &p.scales
	if s.said != "" {
		if err := p.options.refuseScale(s.said); err != nil {
			return err
		}
	}
	if s.zero > 0 {
		p.note("alpha is 0 in %s, where merging changes nothing; set it to the value of the training",
			fault.Count(s.zero, "layer"))
	}
	isByRule := p.options.Alpha == 0 && p.options.Scale == 0
	if s.said == "" && s.unsaid > 0 && isByRule {
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
	return fault.New(fault.Mismatch, "Options.Alpha and Options.Scale are for adapters that do not "+
		"say their scale, and this one says it (%s)", source).
		WithHint("leave them out; if another adapter of the same command needs them, convert that " +
			"one to a .lora file first")
}
