package fileio

import "os"

// bootID changes with every boot of the kernel and is the same in all its containers, like locks.
func bootID() string {
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		return string(id)
	}
	name, _ := os.Hostname()
	return name
}
