package fileio

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/loratool/loratool/internal/jsontext"
)

// While several outputs move to their places, a journal lies in each of their directories. It is on
// disk before the first move, as are all outputs, so a run that finds the journal of a dead run can
// finish the work.

// journalMark begins the name of a journal: .loratool-commit-<host>-<random>.
const journalMark = ".loratool-commit-"

// commitTime is longer than the moves of any commit take. An older journal is abandoned, even if no
// lock shows it.
const commitTime = time.Hour

// journal is the set of equal files, one in each directory of a commit.
type journal struct {
	paths []string
	locks []*os.File
}

// journalText is the content of a journal. Paths are relative to its directory if possible.
type journalText struct {
	Replace bool          `json:"replace"`
	Moves   []journalMove `json:"moves"`
}

type journalMove struct {
	Final string `json:"final"`
	Temp  string `json:"temp"` // a name in the directory of final
	IsDir bool   `json:"dir"`
	ID    string `json:"id"`
}

// newJournal writes the journal into the directories of all moves.
func newJournal(replace bool, moves []move) (*journal, error) {
	j := new(journal)
	name := journalMark + hostTag() + "-" + random()
	for _, m := range moves {
		path := filepath.Join(filepath.Dir(m.final), name)
		if slices.Contains(j.paths, path) {
			continue
		}
		if err := j.write(path, m.final, replace, moves); err != nil {
			return nil, errors.Join(err, j.remove())
		}
	}
	return j, nil
}

// write writes one file of the journal beside final. It appears complete, and locked if there are
// locks.
func (j *journal) write(path, final string, replace bool, moves []move) error {
	dir := filepath.Dir(path)
	text := journalText{Replace: replace}
	for _, m := range moves {
		final := m.final
		if rel, err := filepath.Rel(dir, final); err == nil {
			final = rel
		}
		text.Moves = append(text.Moves, journalMove{filepath.ToSlash(final), filepath.Base(m.temp), m.isDir, m.id})
	}
	content, err := json.Marshal(text)
	if err != nil {
		return err
	}
	stage, err := NewStage(final, false)
	if err != nil {
		return err
	}
	defer stage.Abort()
	f, err := stage.Create("", 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, Close(f)); err != nil {
		return err
	}
	if err := rename(stage.temp, path); err != nil {
		return err
	}
	j.paths, j.locks, stage.lock = append(j.paths, path), append(j.locks, stage.lock), nil
	return syncDir(dir)
}

// remove deletes the journal after the moves are done or undone.
func (j *journal) remove() error {
	var errs []error
	for _, path := range j.paths {
		if err := remove(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	j.unlock()
	return errors.Join(errs...)
}

func (j *journal) unlock() {
	for _, lock := range j.locks {
		if lock != nil {
			lock.Close()
		}
	}
}

// Finish completes the commits of killed runs in a directory, for readers of their outputs.
func Finish(dir string) error {
	_, err := finish(dir)
	return err
}

// isJournal reports whether a directory entry is a journal, by its name.
func isJournal(e fs.DirEntry) bool {
	return strings.HasPrefix(e.Name(), journalMark) && e.Type().IsRegular()
}

// finish completes the commits of dead runs in a directory, and returns the places that received
// outputs.
func finish(dir string) (finals []string, err error) {
	entries, _ := os.ReadDir(dir) // an unreadable directory shows nothing
	for _, e := range entries {
		if !isJournal(e) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		lock, ok := tryLock(path)
		if ok && hasEnded(path, lock) {
			done, finishErr := finishOne(dir, path, lock)
			finals, err = append(finals, done...), errors.Join(err, finishErr)
		} else if lock != nil {
			lock.Close()
		}
	}
	return finals, err
}

// hasEnded reports whether the run of an unlocked journal is over.
func hasEnded(path string, lock *os.File) bool {
	if lock != nil && strings.HasPrefix(filepath.Base(path), journalMark+hostTag()+"-") {
		return true
	}
	info, err := os.Lstat(path)
	return err == nil && time.Since(info.ModTime()) > commitTime
}

// finishOne continues the moves of a journal. If an output has vanished, it moves the replaced
// outputs back.
func finishOne(dir, path string, lock *os.File) (finals []string, err error) {
	j := &journal{locks: []*os.File{lock}}
	replace, moves, err := readJournal(dir, path)
	if err != nil {
		j.unlock()
		return nil, nil // not ours, so none of its moves are done
	}
	for _, m := range moves {
		if p := filepath.Join(filepath.Dir(m.final), filepath.Base(path)); !slices.Contains(j.paths, p) {
			j.paths = append(j.paths, p)
		}
	}
	isLost := func(m move) bool { return !m.isIn() && !m.isHidden() }
	if !slices.ContainsFunc(moves, isLost) {
		err = moveAll(replace, moves)
	}
	if err != nil || slices.ContainsFunc(moves, isLost) {
		hasReplaced := func(m move) bool { return exists(m.old()) || m.isDir && m.id != "" && exists(m.temp) && m.isIn() }
		moves = slices.DeleteFunc(moves, func(m move) bool { return !hasReplaced(m) })
		return nil, errors.Join(err, moveBack(moves), j.remove())
	}
	for _, m := range moves {
		finals = append(finals, m.final)
	}
	return finals, errors.Join(settle(moves), j.remove())
}

// readJournal reads a journal, and accepts it only if every path is one that a stage would have.
func readJournal(dir, path string) (replace bool, moves []move, err error) {
	content, err := ReadFile(path, 1<<20)
	if err != nil {
		return false, nil, err
	}
	var text journalText
	if err := jsontext.Decode(content, &text); err != nil {
		return false, nil, err
	}
	for _, m := range text.Moves {
		final := filepath.FromSlash(m.Final)
		if !filepath.IsAbs(final) {
			final = filepath.Join(dir, final)
		}
		parent, name := filepath.Split(final)
		if m.Temp != filepath.Base(m.Temp) || !strings.HasPrefix(m.Temp, "."+name+tempMark) {
			return false, nil, errors.New("a journal with moves that no commit makes")
		}
		moves = append(moves, move{temp: filepath.Join(parent, m.Temp), final: final, isDir: m.IsDir, id: m.ID})
	}
	if len(moves) < 2 {
		return false, nil, errors.New("a journal without moves")
	}
	return text.Replace, moves, nil
}
