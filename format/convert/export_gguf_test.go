package convert

// GGUFNames returns the tensor of a module, and the module of a tensor, "" where there is none.
func GGUFNames(architecture, module, tensor string) (string, string) {
	m := ggufNamed(architecture)
	t, _ := m.tensor(module)
	of, ok := m.module(tensor)
	if !ok {
		of = ""
	}
	return t, of
}
