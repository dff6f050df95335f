package fileio

import "errors"

// WithSyncDir calls watch before each flush of a directory while f runs.
func WithSyncDir(watch func(path string), f func()) {
	old := syncDir
	syncDir = func(path string) error { watch(path); return old(path) }
	defer func() { syncDir = old }()
	f()
}

// WithSyncError makes each flush of a directory fail that fails reports for, while f runs.
func WithSyncError(fails func(path string) error, f func()) {
	old := syncDir
	syncDir = func(path string) error { return errors.Join(fails(path), old(path)) }
	defer func() { syncDir = old }()
	f()
}

// WithoutCase runs f as on a file system that ignores case.
func WithoutCase(f func()) {
	old := ignoresCase
	ignoresCase = func(string) bool { return true }
	defer func() { ignoresCase = old }()
	f()
}

// AtStep calls f before every change of names from now on.
func AtStep(f func()) { step = f }

// NoExchange makes this process unable to swap names.
func NoExchange() { exchange = func(string, string) error { return errNoExchange } }

// HostTag returns this machine's tag.
func HostTag() string { return hostTag() }
