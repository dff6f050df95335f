package convert

import "github.com/loratool/loratool/format"

// peftReader makes layers from the keys of a PEFT file.
type peftReader struct {
	collector
	config *peftConfigFile
	saved  peftSaved
	names  map[string]bool // the adapter names in the keys
	levels map[string]int  // how many nested factors a module has
	// factors says whether the file has keys of factors, and whether one of them lacks PEFT's
	// prefix.
	factors struct{ some, bare bool }
}

func (p *peftReader) stray(tensor int, where string) {
	p.opaque(tensor)
	p.require(format.FeatureStrayTensor, where)
}
