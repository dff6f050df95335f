package convert

// XLabs returns the dialect of XLabs' adapters of Flux, whose keys name the processor of a block:
// double_blocks.0.processor.qkv_lora1.down.weight. In a double block, the factors with 1 belong to
// the image stream and those with 2 to the text stream. In a single block, proj_lora belongs to
// linear2, and qkv_lora to the rows of linear1 for q, k and v: such tensors are carried, and merge
// refuses them by name. The scale is 1, as XLabs' and diffusers' code apply the files. It is read
// only.
func XLabs() Dialect { return xLabs }

var xLabs = &pairDialect{
	readOnly: readOnly{"xlabs"}, owns: func(k *pairKey) bool { return k.tail == xLabsTail },
}
