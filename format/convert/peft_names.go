package convert

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/naming"
)

// LostByPEFT returns a module of an adapter that PEFT would silently ignore, because the models it
// returns give that module another name in memory than on disk; "" if the names show no such
// module. Adapters that PEFT trained use the names in memory. Adapters that package rank extracts
// use the names of the checkpoint.
func LostByPEFT(src format.Source) (module, models string) {
	for i := range src.Manifest().Adapters {
		a := &src.Manifest().Adapters[i]
		if a.Dialect == PEFT().Name() {
			continue
		}
		var modules []string
		for _, l := range a.Layers {
			modules = append(modules, l.Module)
		}
		for _, b := range a.Beside {
			modules = append(modules, naming.Module(b.Target))
		}
		if module, models = naming.OnlyOnDisk(modules); module != "" {
			return module, models
		}
	}
	return "", ""
}
