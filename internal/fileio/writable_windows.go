package fileio

// writable does nothing: only an attempt tells what an access control list allows.
func writable(dir string) error { return nil }
