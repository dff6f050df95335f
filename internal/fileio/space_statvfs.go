//go:build netbsd || solaris

package fileio

import "golang.org/x/sys/unix"

// FreeBytes returns the space left for an unprivileged process in the file system of dir. POSIX
// counts it in fragments, not in blocks.
func FreeBytes(dir string) (int64, error) {
	var st unix.Statvfs_t
	if err := unix.Statvfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Frsize), nil
}
