package report

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/undo"
)

// Undo is the report on the undo record of a merge.
type Undo struct {
	Kind          string         `json:"kind"` // "undo"
	Tool          string         `json:"tool"`
	Adapters      []undo.Adapter `json:"adapters"` // the merged adapters
	Files         []UndoFile     `json:"files"`
	Side          []undo.Side    `json:"side,omitempty"` // files beside the weights that the merge changed
	Tensors       []UndoTensor   `json:"tensors"`        // tensors that the merge changed
	Elements      int64          `json:"elements"`
	Bytes         int64          `json:"bytes"` // of the record
	BitsPerWeight float64        `json:"bits_per_weight"`
}

// UndoFile is a weight file of the checkpoint.
type UndoFile struct {
	Name    string      `json:"name"` // "" for a single-file checkpoint
	Changed bool        `json:"changed"`
	Before  undo.Header `json:"before"` // header before the merge
	After   undo.Header `json:"after"`
}

// UndoTensor is a changed tensor.
type UndoTensor struct {
	Tensor    string   `json:"tensor"`
	DType     string   `json:"dtype"`
	Shape     []uint64 `json:"shape"`
	Elements  int64    `json:"elements"`
	Predict   string   `json:"predict"`   // "subtract", or "same" for a tensor with replaced values
	Residuals int64    `json:"residuals"` // elements that the record must correct
	Blocks    int64    `json:"blocks"`
	Before    string   `json:"before"` // SHA-256 of the checksums of its blocks before the merge
	After     string   `json:"after"`  // SHA-256 of the checksums of its blocks after the merge
}

// IsUndo reports whether a source is an undo record.
func IsUndo(src format.Source) bool { return undo.Is(src) }

// DescribeUndo reports on an undo record of nBytes bytes.
func DescribeUndo(src format.Source, nBytes int64) (*Undo, error) {
	r, err := undo.Open(src)
	if err != nil {
		return nil, err
	}
	u := &Undo{Kind: "undo", Tool: r.Tool, Adapters: r.Adapters, Files: []UndoFile{}, Side: r.Side, Tensors: []UndoTensor{}, Elements: r.Elements(), Bytes: nBytes}
	for i := range r.Files {
		f := &r.Files[i]
		u.Files = append(u.Files, UndoFile{f.Name, f.Changed(), f.Before, f.After})
	}
	for i := range r.Tensors {
		t := &r.Tensors[i]
		s, err := r.Summarise(i)
		if err != nil {
			return nil, err
		}
		u.Tensors = append(u.Tensors, UndoTensor{
			Tensor: t.Name, DType: t.DType, Shape: t.Shape, Elements: t.Elements(), Predict: t.Predict,
			Residuals: s.Residuals, Blocks: t.Blocks(), Before: s.Before, After: s.After,
		})
	}
	if u.Elements > 0 {
		u.BitsPerWeight = 8 * float64(u.Bytes) / float64(u.Elements)
	}
	return u, nil
}
