//go:build !linux

package fileio

import (
	"io/fs"
	"time"
)

// changeTime returns the time of the last write: this system has no better one.
func changeTime(info fs.FileInfo) time.Time { return info.ModTime() }
