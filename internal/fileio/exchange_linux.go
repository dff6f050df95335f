package fileio

import (
	"errors"

	"golang.org/x/sys/unix"
)

// exchange lets two names change places in one step; errNoExchange where the kernel or the file
// system cannot. It is a variable for the tests.
var exchange = func(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return errNoExchange
	}
	return err
}
