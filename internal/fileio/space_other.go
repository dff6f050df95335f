//go:build !unix && !windows

package fileio

import "errors"

// FreeBytes fails: this system does not say how much space is free, and a caller that has an error
// does without the check.
func FreeBytes(dir string) (int64, error) { return 0, errors.ErrUnsupported }
