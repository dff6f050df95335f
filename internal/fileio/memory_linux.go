package fileio

import "os"

func availableMemory() int64 { return linuxMemory(os.DirFS("/")) }
