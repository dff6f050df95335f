package convert

import "github.com/loratool/loratool/internal/naming"

// GGUFNames returns the tensor of a module, and the module of a tensor, "" where there is none.
func GGUFNames(architecture, module, tensor string) (string, string) {
	m := naming.LlamaCppNamed(architecture)
	t, _ := m.Tensor(module)
	of, ok := m.Module(tensor)
	if !ok {
		of = ""
	}
	return t, of
}
