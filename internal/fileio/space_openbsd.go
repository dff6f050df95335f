package fileio

import "golang.org/x/sys/unix"

// FreeBytes returns the space left for an unprivileged process in the file system of dir. It is
// negative if only the superuser has room left.
func FreeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return max(st.F_bavail, 0) * int64(st.F_bsize), nil
}
