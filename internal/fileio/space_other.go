//go:build !unix && !windows

package fileio

import "errors"

// FreeBytes fails: this system does not tell the free space. Callers then skip the check.
func FreeBytes(dir string) (int64, error) { return 0, errors.ErrUnsupported }
