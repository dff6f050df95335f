package fileio

import (
	"errors"

	"golang.org/x/sys/unix"
)

// exchange swaps two names in one step. It returns errNoExchange if the kernel or file system
// cannot. Tests replace it.
var exchange = func(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return errNoExchange
	}
	return err
}
