package fileio

import (
	"errors"
	"os"
)

// step is called before every change of names. Tests replace it to kill the process there.
var step = func() {}

func rename(from, to string) error { step(); return os.Rename(from, to) }

func link(from, to string) error { step(); return os.Link(from, to) }

func remove(path string) error { step(); return os.Remove(path) }

func removeAll(path string) error { step(); return os.RemoveAll(path) }

// errNoExchange means that the system cannot swap two names.
var errNoExchange = errors.New("names cannot be exchanged here")
