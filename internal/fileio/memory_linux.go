package fileio

import "os"

// AvailableMemory returns the memory that this process can still take: the least of the system's
// available memory and the rest under the limits of its control group and address space. 0 means
// unknown.
func AvailableMemory() int64 { return linuxMemory(os.DirFS("/")) }

// HeldMemory returns the physical memory that this process has taken, with its program text.
func HeldMemory() int64 { return linuxHeld(os.DirFS("/")) }
