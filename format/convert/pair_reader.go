package convert

import "github.com/loratool/loratool/format"

// pairReader makes layers from the keys of a pairDialect.
type pairReader struct {
	collector
	dialect  string
	modules  func(names []string) map[string]string // see pairDialect
	options  Options
	values   format.Source // reads the alphas
	metadata map[string]string
	card     []byte

	needsScale bool // see pairDialect
	adapt      func(k *pairKey, name string)
	fused      bool
	rows       format.Feature
	beside     *besideScale

	layers    map[string]map[format.Role]int
	kinds     map[string]format.Kind // of modules whose roles say it
	hasMethod map[string]bool        // modules with tensors of another method, whose alpha needs no factors
	scales    pairScales

	configs []*pairConfig
}

// pairScales remembers where the scales of the layers come from.
type pairScales struct {
	said   string   // what in the file says a scale
	unsaid []string // layers whose scale comes from the dialect's rule or from the user
	zero   int      // layers of alpha 0
}

// besideScale is what a file beside the weights says of all layers.
type besideScale struct {
	file         string
	alpha, scale float64 // the scale is alpha/rank with hasAlpha, and otherwise scale
	hasAlpha     bool
	rank         int    // 0 if the file does not say it
	base         string // the name of the base, "" if the file does not say it
}

// pairConfig is PEFT's configuration of one component, from the header.
type pairConfig struct {
	*peftReader
	prefix string // of the component's modules, with the dot; "" for a file of one component
}
