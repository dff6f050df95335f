package fileio

// WithSyncDir calls watch before a directory is made durable, while f runs.
func WithSyncDir(watch func(path string), f func()) {
	old := syncDir
	syncDir = func(path string) error { watch(path); return old(path) }
	defer func() { syncDir = old }()
	f()
}

// WithoutCase runs f as on a file system that ignores the case of names.
func WithoutCase(f func()) {
	old := ignoresCase
	ignoresCase = func(string) bool { return true }
	defer func() { ignoresCase = old }()
	f()
}

// AtStep calls f before every change of names from now on.
func AtStep(f func()) { step = f }

// NoExchange makes this process one on whose system names cannot be exchanged.
func NoExchange() { exchange = func(string, string) error { return errNoExchange } }

// HostTag is that of this machine.
func HostTag() string { return hostTag() }
