package fileio

import "os"

// AvailableMemory is the memory that this process can still take: what the system has available, or
// what the limits of its control group and of its address space leave, whichever is least. 0 is
// unknown.
func AvailableMemory() int64 { return linuxMemory(os.DirFS("/")) }
