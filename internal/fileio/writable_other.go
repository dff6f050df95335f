//go:build !unix

package fileio

// writable does nothing: on Windows only an attempt shows what an access control list allows, and
// WebAssembly has no such call.
func writable(dir string) error { return nil }
