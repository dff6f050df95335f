package report

import (
	"github.com/loratool/loratool/format"
)

// Bundle is the report on a file of several adapters.
type Bundle struct {
	Kind        string   `json:"kind"` // "bundle"
	Adapters    []Member `json:"adapters"`
	Tensors     int      `json:"tensors"`
	Bytes       int64    `json:"bytes"`        // of all tensors
	SharedBytes int64    `json:"shared_bytes"` // that the adapters would take more if none shared a tensor
}

// Member is one adapter of a bundle.
type Member struct {
	Name       string `json:"name"`
	Dialect    string `json:"dialect"`
	Method     string `json:"method"`
	Base       string `json:"base"`
	Layers     int    `json:"layers"`
	Tensors    int    `json:"tensors"`
	Parameters int64  `json:"parameters"`
	Bytes      int64  `json:"bytes"` // of its tensors
}

// DescribeBundle reports on the adapters of a source. It reads no tensor.
func DescribeBundle(src format.Source) *Bundle {
	m := src.Manifest()
	b := &Bundle{Kind: "bundle", Adapters: []Member{}, Tensors: len(m.Tensors)}
	for i := range m.Tensors {
		b.Bytes += m.Tensors[i].NBytes()
	}
	b.SharedBytes = -b.Bytes
	for i := range m.Adapters {
		a := &m.Adapters[i]
		member := Member{Name: a.Name, Dialect: a.Dialect, Method: string(a.Method), Base: a.Base.Name, Layers: len(a.Layers)}
		for _, t := range a.Tensors() {
			member.Tensors++
			member.Parameters += m.Tensors[t].Elements()
			member.Bytes += m.Tensors[t].NBytes()
		}
		b.SharedBytes += member.Bytes
		b.Adapters = append(b.Adapters, member)
	}
	return b
}
