//go:build !linux

package fileio

import "os"

// bootID is the name of the machine: this system has no better identifier.
func bootID() string {
	name, _ := os.Hostname()
	return name
}
