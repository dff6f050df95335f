package convert

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
)

// The entries of __metadata__ that are hashes of the file's own tensors.
const (
	modelHashKey  = "sshs_model_hash"
	legacyHashKey = "sshs_legacy_hash"
	specHashKey   = "modelspec.hash_sha256"

	trainingPrefix = "ss_" // of the entries of sd-scripts
)

// kohyaMetadata returns __metadata__ for a new file in kohya's grammar, made from a source with the
// given metadata: its ss_*, modelspec.* and other entries, and the hashes of the new tensors. It
// leaves out the entries in which other dialects state the scale, because a file of kohya states it
// in its tensors alpha. If the new file has another rank or method than ss_network_* say, the
// caller changes these entries first. tensors and read are those for package format/safetensors,
// whose Write makes the file.
//
// Without any entry ss_*, the result has no hashes that the source lacks, and may be nil: A1111
// takes a file with any metadata but ss_base_model_version for one of Stable Diffusion 1, and hides
// it where another model is loaded (extensions-builtin/Lora/network.py, detect_version). It
// computes the hash of a file without one.
func kohyaMetadata(
	ctx context.Context, source map[string]string, tensors []format.Tensor,
	read func(p []byte, i int, off int64) error,
) (map[string]string, error) {
	all := maps.Clone(source)
	delete(all, diffusersMetadata)
	delete(all, headerAlpha)
	isTraining := func(key string) bool { return strings.HasPrefix(key, trainingPrefix) }
	if slices.ContainsFunc(slices.Collect(maps.Keys(all)), isTraining) {
		for _, key := range []string{modelHashKey, legacyHashKey} { // sd-scripts always writes both
			all[key] = ""
		}
	} else if delete(all, "format"); len(all) == 0 {
		return nil, nil
	}
	return renewHashes(ctx, all, tensors, read)
}

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
