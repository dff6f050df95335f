package convert

import (
	"context"
	"maps"

	"github.com/loratool/loratool/format"
)

// The entries of __metadata__ that are hashes of the file's own tensors.
const (
	modelHashKey  = "sshs_model_hash"
	legacyHashKey = "sshs_legacy_hash"
	specHashKey   = "modelspec.hash_sha256"

	trainingPrefix = "ss_" // of the entries of sd-scripts
)

// renewHashes returns metadata for a new file of tensors, which package format/safetensors writes.
// Each hash in it becomes that of these tensors. A hash of other tensors would lead people, and
// programs that trust the header, to another adapter. A legacy hash that nobody can predict (see
// Hashes) is left out.
func renewHashes(
	ctx context.Context, metadata map[string]string, tensors []format.Tensor,
	read func(p []byte, i int, off int64) error,
) (map[string]string, error) {
	_, hasModel := metadata[modelHashKey]
	_, hasLegacy := metadata[legacyHashKey]
	_, hasSpec := metadata[specHashKey]
	if !hasModel && !hasLegacy && !hasSpec {
		return metadata, nil
	}
	model, legacy, err := modelHashes(ctx, tensors, metadata, read)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(metadata)
	if hasModel {
		all[modelHashKey] = model
	}
	if delete(all, legacyHashKey); hasLegacy && legacy != "" {
		all[legacyHashKey] = legacy
	}
	if hasSpec {
		all[specHashKey] = "0x" + model // the data are in the order of the format's own writer
	}
	return all, nil
}
