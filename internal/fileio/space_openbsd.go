package fileio

import "golang.org/x/sys/unix"

// FreeBytes is the space that an unprivileged process can still fill in the file system of dir. The
// system counts it below zero where only the superuser has room left.
func FreeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return max(st.F_bavail, 0) * int64(st.F_bsize), nil
}
