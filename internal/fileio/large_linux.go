package fileio

import "golang.org/x/sys/unix"

// largeFile lets a file grow beyond 2 GiB under 32-bit system calls. Package os sets it on files
// opened by path, but not on those opened through an os.Root.
const largeFile = unix.O_LARGEFILE
