package convert

import (
	"fmt"
	"slices"
	"strconv"
)

// This file knows the order in which cloneofsimo's lora walks through models: the linear layers in
// every CrossAttention and GEGLU of the U-Net, and in every CLIPAttention of the text encoder, as
// torch's named_modules lists them. testdata/cloneofsimo has the list of the U-Net, made by
// walking through the class.

// size is the outputs and inputs of a linear layer.
type size struct{ m, n uint64 }

// walkOf returns the modules of a component in that order, if layers of the given sizes can be
// theirs; else nil. "" stands for either component.
func walkOf(component string, sizes []size) []string {
	switch component {
	case "unet":
		return walkUNet(sizes)
	case "text_encoder":
		return walkCLIP(sizes)
	case "":
		if modules := walkUNet(sizes); modules != nil {
			return modules
		}
		return walkCLIP(sizes)
	}
	return nil
}

// walkCLIP: four square layers of one width in each block.
func walkCLIP(sizes []size) (modules []string) {
	if len(sizes) == 0 || len(sizes)%4 != 0 {
		return nil
	}
	for i, s := range sizes {
		if s != (size{sizes[0].m, sizes[0].m}) {
			return nil
		}
		name := []string{"k_proj", "v_proj", "q_proj", "out_proj"}[i%4]
		modules = append(modules,
			"text_encoder.text_model.encoder.layers."+strconv.Itoa(i/4)+".self_attn."+name)
	}
	return modules
}

// unetBlocks are the transformers of the U-Net, and their widths relative to the first.
var unetBlocks = func() (blocks []struct {
	name  string
	width uint64
}) {
	add := func(width uint64, format string, args ...any) {
		name := "unet." + fmt.Sprintf(format, args...) + ".transformer_blocks.0."
		blocks = append(blocks, struct {
			name  string
			width uint64
		}{name, width})
	}
	for i := range 3 {
		for j := range 2 {
			add(1<<i, "down_blocks.%d.attentions.%d", i, j)
		}
	}
	for i := range 3 {
		for j := range 3 {
			add(4>>i, "up_blocks.%d.attentions.%d", i+1, j)
		}
	}
	add(4, "mid_block.attentions.0") // its class assigns it last
	return blocks
}()

// unetLayers are the layers of a transformer. The first releases left GEGLU out.
var unetLayers = []string{
	"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", geglu,
	"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
}

const geglu = "ff.net.0.proj"

// walkUNet: sixteen transformers of known widths, of which attn2 reads the words of the prompt.
func walkUNet(sizes []size) (modules []string) {
	layers := slices.Clone(unetLayers)
	if len(sizes) == len(unetBlocks)*(len(layers)-1) {
		layers = slices.DeleteFunc(layers, func(l string) bool { return l == geglu })
	}
	if len(sizes) != len(unetBlocks)*len(layers) {
		return nil
	}
	base := sizes[0].m
	words := sizes[slices.Index(layers, "attn2.to_k")].n
	for _, b := range unetBlocks {
		d := b.width * base
		for _, l := range layers {
			want := size{d, d}
			switch l {
			case geglu:
				want.m = 8 * d
			case "attn2.to_k", "attn2.to_v":
				want.n = words
			}
			if sizes[len(modules)] != want {
				return nil
			}
			modules = append(modules, b.name+l)
		}
	}
	return modules
}
