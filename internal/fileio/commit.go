package fileio

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// Commit moves the output to its place. Every file must have been closed with Close. If replace is
// true, Commit replaces an existing file, or an existing directory in which every file has a
// counterpart in the stage: a directory with other files may be the user's.
func (s *Stage) Commit(replace bool) error { return Commit(replace, s) }

// Commit moves several outputs to their places, all of them or none, under the rules of
// Stage.Commit. They appear in the given order. Before that, Commit moves aside the outputs that
// all but the first replace, in the opposite order, so the last output never stands beside a
// mixture of old and new ones. An error after all outputs have reached their places is a
// *PlacedError. If the process dies on the way, the next run that looks at one of
// the directories finds a journal and finishes the work.
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

// prepare flushes the stage to disk and checks that it may be moved.
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

// commitAlone moves a single output, which needs no journal.
func (s *Stage) commitAlone(m move, replace bool) error {
	if err := m.in(replace); err != nil {
		return err
	}
	s.unlock()
	return settle([]move{m})
}
