//go:build !linux

package fileio

import (
	"io/fs"
	"time"
)

// changeTime is the time of the last write, for want of a better one.
func changeTime(info fs.FileInfo) time.Time { return info.ModTime() }
