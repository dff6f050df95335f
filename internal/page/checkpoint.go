package page

import (
	"cmp"
	"fmt"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
)

// Checkpoint returns the page of a checkpoint. Its report should list the tensors.
func Checkpoint(h Head, r *report.Checkpoint) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All tensors", NameHead: "tensor",
		Facts: facts(
			Fact{"Model type", r.ModelType}, Fact{"Parameters", number(r.Parameters)}, Fact{"Tensors", number(r.Tensors)},
			Fact{"Dtypes", dtypesText(r.DTypes)}, Fact{"Files", number(r.Files)}, Fact{"Size", fileio.FormatBytes(r.Bytes)},
			Fact{"Output head", tieText(r.Tied)}, Fact{"Quantised", r.Quantization},
		),
	}
	p.table = newTable(len(r.Listed), func(i int) string { return r.Listed[i].Tensor })
	p.heat("Parameters", "The number of elements of each tensor.", func(i int) float64 { return float64(r.Listed[i].Elements) })
	p.text("dtype", "", func(i int) string { return r.Listed[i].DType })
	p.text("shape", "", func(i int) string { return fmt.Sprint(r.Listed[i].Shape) })
	p.number("parameters", "", func(i int) float64 { return float64(r.Listed[i].Elements) })
	p.number("bytes", "", func(i int) float64 { return float64(r.Listed[i].Bytes) })
	p.text("role", "as its name tells it", func(i int) string { return r.Listed[i].Role })
	p.text("file", "", func(i int) string { return r.Listed[i].File })
	p.addList("Parameters by role", texts(r.Roles, func(c report.RoleCount) string {
		return fmt.Sprintf("%s: %s in %s, %.3g %% of all", c.Role, fault.Count(c.Parameters, "parameter"), fault.Count(c.Tensors, "tensor"),
			100*float64(c.Parameters)/float64(max(1, r.Parameters)))
	}))
	p.addList("Files", texts(r.Shards, func(s report.Shard) string {
		return fmt.Sprintf("%s: %s, %s", s.File, fileio.FormatBytes(s.Bytes), fault.Count(s.Tensors, "tensor"))
	}))
	p.addList("Components", texts(r.Components, func(c report.Component) string {
		return fmt.Sprintf("%s: %s", cmp.Or(c.Name, "others")+inBrackets(c.Architecture), fault.Count(c.Weights, "weight"))
	}))
	p.addMerged(r)
	p.addCost(r.Cost)
	return p.render()
}

// addMerged lists the adapters that the stamps of a checkpoint name.
func (p *page) addMerged(r *report.Checkpoint) {
	var merged []string
	for _, m := range r.Merged {
		for _, a := range m.Adapters {
			merged = append(merged, fmt.Sprintf("%s × %g%s, content %s, by %s, in %s", a.Name, a.Weight, m.OnBase(), a.Content, m.Tool, m.File))
		}
	}
	p.addList("Merged adapters", merged)
}

// addCost lists what a LoRA on the checkpoint would have.
func (p *page) addCost(c *report.Cost) {
	if c == nil {
		return
	}
	p.Notes = append(append([]string{}, p.Notes...), fmt.Sprintf("A LoRA of rank %d has %s, %.3g %% of the checkpoint.", c.Rank, fault.Count(c.Parameters, "parameter"), 100*c.Share))
	p.addList(fmt.Sprintf("A LoRA of rank %d", c.Rank), texts(c.Targets, func(t report.TargetCost) string {
		return fmt.Sprintf("%s: %s in %s", t.Name, fault.Count(t.Parameters, "parameter"), fault.Count(t.Modules, "module"))
	}))
}

func tieText(embedding string) string {
	if embedding == "" {
		return ""
	}
	return "is the embedding " + embedding
}

func inBrackets(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

// Undo returns the page of an undo record.
func Undo(h Head, r *report.Undo) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All changed tensors", NameHead: "tensor",
		Facts: facts(
			Fact{"Made by", r.Tool}, Fact{"Changed tensors", number(len(r.Tensors))}, Fact{"Elements", number(r.Elements)},
			Fact{"Size", fileio.FormatBytes(r.Bytes)}, Fact{"Bits per weight", figure(r.BitsPerWeight)},
		),
	}
	p.table = newTable(len(r.Tensors), func(i int) string { return r.Tensors[i].Tensor })
	corrected := func(i int) float64 { return float64(r.Tensors[i].Residuals) / float64(max(1, r.Tensors[i].Elements)) }
	p.heat("Corrected elements", "The share of the elements of a tensor that subtracting the adapters does not restore, and the record does.", corrected)
	p.text("dtype", "", func(i int) string { return r.Tensors[i].DType })
	p.text("shape", "", func(i int) string { return fmt.Sprint(r.Tensors[i].Shape) })
	p.text("predicted by", "how unmerge begins: it subtracts the adapters, or takes the record alone", func(i int) string { return r.Tensors[i].Predict })
	p.number("corrected", "the share of the elements that the record corrects", corrected)
	p.number("elements", "", func(i int) float64 { return float64(r.Tensors[i].Elements) })
	p.number("blocks", "", func(i int) float64 { return float64(r.Tensors[i].Blocks) })
	p.text("before", "the first digits of the SHA-256 of the tensor's digests before the merge", func(i int) string { return fmt.Sprintf("%.16s", r.Tensors[i].Before) })
	var merged, files []string
	for _, a := range r.Adapters {
		merged = append(merged, fmt.Sprintf("%s × %g, content %s", a.Name, a.Weight, a.Content))
	}
	for _, f := range r.Files {
		if f.Changed {
			files = append(files, fmt.Sprintf("%s: header %s before, %s after", cmp.Or(f.Name, "the one file"), f.Before.SHA256, f.After.SHA256))
		}
	}
	p.addList("Merged adapters", merged)
	p.addList("Changed files", files)
	return p.render()
}

// Bundle returns the page of a file of several adapters.
func Bundle(h Head, r *report.Bundle) ([]byte, error) {
	p := &page{
		Head: h, LayersTitle: "All adapters", NameHead: "adapter",
		Facts: facts(
			Fact{"Adapters", number(len(r.Adapters))}, Fact{"Tensors", number(r.Tensors)}, Fact{"Size", fileio.FormatBytes(r.Bytes)},
			Fact{"Saved by shared tensors", fileio.FormatBytes(r.SharedBytes)},
		),
	}
	p.table = newTable(len(r.Adapters), func(i int) string { return r.Adapters[i].Name })
	p.text("dialect", "", func(i int) string { return r.Adapters[i].Dialect })
	p.text("method", "", func(i int) string { return r.Adapters[i].Method })
	p.count("layers", "", func(i int) int { return r.Adapters[i].Layers })
	p.count("tensors", "", func(i int) int { return r.Adapters[i].Tensors })
	p.number("parameters", "", func(i int) float64 { return float64(r.Adapters[i].Parameters) })
	p.number("bytes", "of its tensors, shared ones too", func(i int) float64 { return float64(r.Adapters[i].Bytes) })
	p.text("base", "", func(i int) string { return r.Adapters[i].Base })
	return p.render()
}
