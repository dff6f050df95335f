package convert

const (
	// maxSideBytes bounds the configuration and the model card, which are held in memory.
	maxSideBytes = 16 << 20
	// maxAttachmentBytes bounds an attachment that is held in memory: a header of safetensors is the largest, R67 of spec/FORMAT.md.
	maxAttachmentBytes = 8 + 100_000_000
	// maxNameBytes is the limit of R32.
	maxNameBytes = 1024
	// maxRank is the limit of R37.
	maxRank = 65536
)
