//go:build !linux

package fileio

import "os"

// bootID is the name of the machine, for want of a better one.
func bootID() string {
	name, _ := os.Hostname()
	return name
}
