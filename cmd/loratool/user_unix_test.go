//go:build unix

package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// userEnv holds the user that the program becomes before it starts, so that permissions bind in a
// test that root runs.
const userEnv = "LORATOOL_TEST_UID"

func becomeUser(f func()) func() {
	return func() {
		if text := os.Getenv(userEnv); text != "" {
			uid, err := strconv.Atoi(text)
			if err == nil {
				err = syscall.Setuid(uid)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "cannot become user %s: %v\n", text, err)
				os.Exit(97)
			}
		}
		f()
	}
}
