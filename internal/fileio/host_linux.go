package fileio

import "os"

// bootID is another one for every start of a kernel, and the same in all its containers, as locks
// are.
func bootID() string {
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		return string(id)
	}
	name, _ := os.Hostname()
	return name
}
