package fileio

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime returns the time of the last change to an inode. Unlike the time of the last write, no
// program can set it back.
func changeTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec))
	}
	return info.ModTime()
}
