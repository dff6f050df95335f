package format

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"sort"
)

// ContentID identifies what an adapter is, whatever it is stored in: the SHA-256, in hex, of the content document of
// spec/FORMAT.md, section 13. It reads every tensor once.
func ContentID(ctx context.Context, src Source) (string, error) {
	m := src.Manifest()
	tensor := func(i int) (any, error) {
		sum, err := hashBlob(ctx, src, i, m.Tensors[i].NBytes())
		if err != nil {
			return nil, err
		}
		shape := append([]uint64{}, m.Tensors[i].Shape...)
		return map[string]any{"dtype": m.Tensors[i].DType.String(), "name": m.Tensors[i].Name, "sha256": sum, "shape": shape}, nil
	}
	adapters := make([]any, 0, len(m.Adapters))
	for i := range m.Adapters {
		a, err := contentAdapter(&m.Adapters[i], m, tensor)
		if err != nil {
			return "", err
		}
		adapters = append(adapters, a)
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]any{"adapters": adapters, "content": 1}); err != nil {
		return "", err
	}
	sum := sha256.Sum256(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
	return hex.EncodeToString(sum[:]), nil
}

func contentAdapter(a *Adapter, m *Manifest, tensor func(int) (any, error)) (any, error) {
	layers, beside, requires := []any{}, []any{}, []any{}
	for i := range a.Layers {
		l := &a.Layers[i]
		roles := make(map[string]any)
		for role, t := range l.Roles {
			v, err := tensor(t)
			if err != nil {
				return nil, err
			}
			roles[string(role)] = v
		}
		record := map[string]any{"kind": l.Kind, "module": l.Module, "rank": l.Rank, "roles": roles, "scaling": l.Scaling}
		if l.Scaling == Fixed {
			record["scale"] = real(l.Fixed)
		} else {
			record["alpha"] = real(l.Alpha)
		}
		layers = append(layers, record)
	}
	sorted := append([]Beside{}, a.Beside...)
	sort.Slice(sorted, func(i, j int) bool { return m.Tensors[sorted[i].Tensor].Name < m.Tensors[sorted[j].Tensor].Name })
	for _, b := range sorted {
		v, err := tensor(b.Tensor)
		if err != nil {
			return nil, err
		}
		record := map[string]any{"action": b.Action, "tensor": v}
		if b.Action != Opaque {
			record["target"] = b.Target
		}
		if b.Action == Rows {
			record["rows"] = b.Rows
		}
		beside = append(beside, record)
	}
	for _, r := range a.Requires {
		requires = append(requires, map[string]any{"feature": r.Feature, "where": r.Where})
	}
	return map[string]any{"beside": beside, "layers": layers, "method": a.Method, "name": a.Name, "requires": requires}, nil
}

// real is a float64 in the only form that the manifest has for it (spec/FORMAT.md, section 7).
func real(x float64) any {
	if x == math.Trunc(x) && math.Abs(x) < 1<<53 {
		return int64(x)
	}
	return fmt.Sprintf("%016x", math.Float64bits(x))
}

func hashBlob(ctx context.Context, src Source, i int, size int64) (string, error) {
	h := sha256.New()
	piece := make([]byte, min(size, 1<<18))
	for off := int64(0); off < size; off += int64(len(piece)) {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		p := piece[:min(int64(len(piece)), size-off)]
		if err := src.ReadBlobAt(p, i, off); err != nil {
			return "", err
		}
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
