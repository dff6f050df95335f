package fileio

import "golang.org/x/sys/unix"

// largeFile lets a file grow beyond 2 GiB where the system calls have 32 bits. The package os sets
// it on whatever it opens by a path, but not on files that it opens through an os.Root.
const largeFile = unix.O_LARGEFILE
