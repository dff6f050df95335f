package fileio

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Commit moves the output to its place. Every file must have been closed with Close. An existing file there is replaced
// only if replace is true, an existing directory only if, besides, every file in it is one that the stage has too: a
// directory that holds anything else is not ours to remove.
func (s *Stage) Commit(replace bool) error { return Commit(replace, s) }

// Commit moves several outputs to their places as one result, under the rules of Stage.Commit: all of them, or none. They
// appear in the order in which they are given, and what all but the first of them replace is moved aside before that, in
// the opposite order, so no mixture of old and new outputs is ever there with the last one among them. Where the process
// is ended on the way, the next run that looks at one of the directories finds a journal, and finishes the work.
func Commit(replace bool, stages ...*Stage) error {
	moves := make([]move, len(stages))
	for i, s := range stages {
		if err := s.prepare(replace); err != nil {
			return err
		}
		moves[i] = move{temp: s.temp, final: s.final, isDir: s.isDir, id: fileID(s.made)}
	}
	if len(moves) == 1 {
		return stages[0].commitAlone(moves[0], replace)
	}
	j, err := newJournal(replace, moves)
	if err != nil {
		return err
	}
	if err := moveAll(replace, moves); err != nil {
		return errors.Join(err, moveBack(moves), j.remove())
	}
	for _, s := range stages {
		s.unlock()
	}
	return errors.Join(settle(moves), j.remove())
}

// prepare makes the stage durable and checks that it may be moved.
func (s *Stage) prepare(replace bool) error {
	if err := s.verify(); err != nil {
		return err
	}
	s.release()
	if !s.isDir {
		return nil
	}
	err := filepath.WalkDir(s.temp, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = syncDir(path)
		}
		return err
	})
	if err != nil || !replace {
		return err
	}
	foreign, err := s.Foreign()
	if err == nil && len(foreign) > 0 {
		err = foreignError(s.final, foreign[0])
	}
	return err
}

// commitAlone moves one output, which takes no journal.
func (s *Stage) commitAlone(m move, replace bool) error {
	if err := m.in(replace); err != nil {
		return err
	}
	s.unlock()
	return settle([]move{m})
}

// move is the way of one output to its place.
type move struct {
	temp, final string
	isDir       bool
	id          string // of what was built at temp; "" where the system has none
}

// old is where what is replaced waits until the new outputs are in their places.
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

// isHidden reports whether the output waits where it was built.
func (m *move) isHidden() bool {
	there, err := os.Lstat(m.temp)
	return err == nil && fileID(there) == m.id
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// moveAll moves outputs to their places. It goes on where an earlier call was ended.
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

// aside takes away what is to be replaced.
func (m *move) aside() error {
	if m.isIn() || exists(m.old()) {
		return nil
	}
	if err := rename(m.final, m.old()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keep gives a second name to a file that is to be replaced, so that it can come back. A directory changes places with the
// new one, and needs none.
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

// in moves the output to its place. What it replaces is at old afterwards, if it was a directory.
func (m *move) in(replace bool) error {
	if !replace {
		if !m.isDir {
			// A link, unlike a rename, fails when the place has been taken meanwhile.
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

// errNoExchange: the system cannot let two names change places.
var errNoExchange = errors.New("names cannot be exchanged here")

// inSteps replaces a directory where the system has no exchange. Between the two renames the place is empty: what ends the
// process there leaves the old output under a name that restore knows.
func (m *move) inSteps() error {
	if err := m.aside(); err != nil {
		return err
	}
	if err := rename(m.temp, m.final); err != nil {
		return errors.Join(err, rename(m.old(), m.final))
	}
	return nil
}

// settle makes the moves durable, and only then removes what they have replaced.
func settle(moves []move) error {
	for i := range moves {
		if err := syncDir(filepath.Dir(moves[i].final)); err != nil {
			return err
		}
	}
	var errs []error
	for i := range moves {
		m := &moves[i]
		if len(moves) == 1 && exists(m.old()) {
			errs = append(errs, rename(m.old(), m.temp)) // there is no journal: from here on it may be swept
		}
		errs = append(errs, removeAll(m.temp), removeAll(m.old()))
	}
	return errors.Join(errs...)
}

// moveBack undoes moves: new outputs go back to their hidden names, the last one first, then old ones to their places.
func moveBack(moves []move) error {
	var errs []error
	for _, m := range slices.Backward(moves) {
		switch {
		case !m.isIn():
		case m.isDir && exists(m.temp): // the old one, by an exchange
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
		case os.SameFile(old, there): // the second name that keep gave it
			errs = append(errs, remove(m.old()))
		}
	}
	return errors.Join(errs...)
}

// step is called before every change of names. It is a variable for the tests, which end the process there.
var step = func() {}

func rename(from, to string) error { step(); return os.Rename(from, to) }
func link(from, to string) error   { step(); return os.Link(from, to) }
func remove(path string) error     { step(); return os.Remove(path) }
func removeAll(path string) error  { step(); return os.RemoveAll(path) }
