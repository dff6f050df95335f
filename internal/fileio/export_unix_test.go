//go:build unix

package fileio

// WithFlock runs f with another flock(2).
func WithFlock(flock2 func(fd, how int) error, f func()) {
	old := flock
	flock = flock2
	defer func() { flock = old }()
	f()
}
