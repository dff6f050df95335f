//go:build unix

package fileio

// WithFlock runs f with a different file lock.
func WithFlock(flock2 func(fd int) error, f func()) {
	old := flock
	flock = flock2
	defer func() { flock = old }()
	f()
}
