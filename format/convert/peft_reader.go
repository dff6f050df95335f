package convert

import (
	"fmt"

	"github.com/loratool/loratool/format"
)

// peftReader makes layers from the keys of a PEFT file.
type peftReader struct {
	config   *peftConfigFile
	saved    peftSaved
	tensors  []format.Tensor
	manifest *format.Manifest
	out      format.Adapter
	names    map[string]bool // the adapter names in the keys
	levels   map[string]int  // how many nested factors a module has
	// factors says whether the file has keys of factors, and whether one of them lacks PEFT's
	// prefix.
	factors struct{ some, bare bool }
}

func (p *peftReader) note(format string, args ...any) {
	p.manifest.Notes = append(p.manifest.Notes, fmt.Sprintf(format, args...))
}

func (p *peftReader) require(feature format.Feature, where string) {
	p.out.Requires = append(p.out.Requires, requirement(feature, where))
}

func (p *peftReader) opaque(i int) {
	p.out.Beside = append(p.out.Beside, format.Beside{Action: format.Opaque, Target: p.tensors[i].Name, Tensor: i})
}

func (p *peftReader) stray(tensor int, where string) {
	p.opaque(tensor)
	p.require(format.FeatureStrayTensor, where)
}
