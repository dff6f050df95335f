//go:build aix || solaris

package fileio

import "errors"

// flock fails: these systems lock ranges for a process rather than files for a handle, so a run
// could not see the locks of another run in the same process.
var flock = func(fd int) error { return errors.ErrUnsupported }
