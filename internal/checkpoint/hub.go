package checkpoint

import (
	"path/filepath"
	"regexp"
	"strings"
)

// inHub matches the path of a snapshot in the cache of huggingface_hub:
// models--ORGANISATION--NAME/snapshots/COMMIT.
var inHub = regexp.MustCompile(`(?:^|/)models--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)`)

// Repository returns the name of the repository and the commit that the hub's cache records in the
// path of a checkpoint. Both are empty elsewhere.
func (c *Checkpoint) Repository() (name, commit string) {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return "", ""
	}
	m := inHub.FindStringSubmatch(filepath.ToSlash(path))
	if m == nil {
		return "", ""
	}
	return strings.ReplaceAll(m[1], "--", "/"), m[2]
}
