package fileio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// move brings one output to its place.
type move struct {
	temp, final string
	isDir       bool
	id          string // of the output at temp; "" if the system has none
}

// old is the name of the replaced output until all new outputs are in place.
func (m *move) old() string { return m.temp + oldMark }

// isIn reports whether the output is in its place.
func (m *move) isIn() bool {
	there, err := os.Lstat(m.final)
	if err != nil {
		return false
	}
	if m.id != "" {
		return fileID(there) == m.id
	}
	return !exists(m.temp)
}

// isHidden reports whether the output is still at its hidden name.
func (m *move) isHidden() bool {
	there, err := os.Lstat(m.temp)
	return err == nil && fileID(there) == m.id
}

// aside moves the output to be replaced out of the way.
func (m *move) aside() error {
	if m.isIn() || exists(m.old()) {
		return nil
	}
	if err := rename(m.final, m.old()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keep gives a file that will be replaced a second name, so that it can come back. A directory is
// swapped with the new one and needs none.
func (m *move) keep() error {
	if m.isDir || m.isIn() || exists(m.old()) {
		return nil
	}
	err := link(m.final, m.old())
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return m.aside() // no links here
}

// in moves the output to its place. A replaced directory is at old afterwards.
func (m *move) in(replace bool) error {
	if !replace {
		if !m.isDir {
			// Unlike a rename, a link fails if the place has been taken meanwhile.
			if err := link(m.temp, m.final); err == nil || errors.Is(err, fs.ErrExist) {
				return errors.Join(err, remove(m.temp))
			}
		}
		if _, err := os.Lstat(m.final); err == nil {
			return &fs.PathError{Op: "create", Path: m.final, Err: fs.ErrExist}
		}
		return rename(m.temp, m.final)
	}
	if !m.isDir {
		return rename(m.temp, m.final)
	}
	step()
	switch err := exchange(m.temp, m.final); {
	case err == nil:
		return nil // the old one is at temp
	case errors.Is(err, fs.ErrNotExist):
		return rename(m.temp, m.final)
	case !errors.Is(err, errNoExchange):
		return err
	}
	return m.inSteps()
}

// inSteps replaces a directory on a system that cannot swap names. Between the two renames the
// place is empty. If the process dies there, restore finds the old output by its name.
func (m *move) inSteps() error {
	if err := m.aside(); err != nil {
		return err
	}
	if err := rename(m.temp, m.final); err != nil {
		return errors.Join(err, rename(m.old(), m.final))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// moveAll moves outputs to their places. It continues where an interrupted call stopped.
func moveAll(replace bool, moves []move) error {
	if replace {
		for i := len(moves) - 1; i > 0; i-- {
			if err := moves[i].aside(); err != nil {
				return err
			}
		}
		if err := moves[0].keep(); err != nil {
			return err
		}
	}
	for i := range moves {
		if moves[i].isIn() {
			continue
		}
		if err := moves[i].in(replace); err != nil {
			return err
		}
	}
	return nil
}

// settle flushes the moves to disk, and only then removes the replaced outputs. Its errors are
// *PlacedError.
func settle(moves []move) error {
	var errs []error
	for i := range moves {
		errs = append(errs, syncDir(filepath.Dir(moves[i].final)))
	}
	if err := errors.Join(errs...); err != nil {
		return &PlacedError{places(moves), "may not survive a power cut", err}
	}
	for i := range moves {
		m := &moves[i]
		if len(moves) == 1 && exists(m.old()) {
			errs = append(errs, rename(m.old(), m.temp)) // without a journal, a sweep may remove it from here on
		}
		errs = append(errs, removeAll(m.temp), removeAll(m.old()))
	}
	if err := errors.Join(errs...); err != nil {
		return &PlacedError{places(moves), "the files it replaces could not be removed", err}
	}
	return nil
}

func places(moves []move) []string {
	all := make([]string, len(moves))
	for i, m := range moves {
		all[i] = m.final
	}
	return all
}

// PlacedError is a failure after all outputs have reached their places: they are complete there.
type PlacedError struct {
	Paths []string
	Why   string // the fault, as the end of a sentence
	Err   error
}

func (e *PlacedError) Error() string {
	return fmt.Sprintf("the new %s is complete and in place, but %s: %v",
		strings.Join(e.Paths, ", with "), e.Why, e.Err)
}

func (e *PlacedError) Unwrap() error { return e.Err }

// moveBack undoes moves: first it moves new outputs back to their hidden names, the last one first,
// then old ones to their places.
func moveBack(moves []move) error {
	var errs []error
	for _, m := range slices.Backward(moves) {
		switch {
		case !m.isIn():
		case m.isDir && exists(m.temp): // the old one, after a swap
			step()
			errs = append(errs, exchange(m.temp, m.final))
		default:
			errs = append(errs, rename(m.final, m.temp))
		}
	}
	for _, m := range moves {
		old, err := os.Lstat(m.old())
		if err != nil {
			continue
		}
		switch there, err := os.Lstat(m.final); {
		case err != nil:
			errs = append(errs, rename(m.old(), m.final))
		case os.SameFile(old, there): // the second name from keep
			errs = append(errs, remove(m.old()))
		}
	}
	return errors.Join(errs...)
}
