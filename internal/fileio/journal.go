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

// A journal lies in the directories of several outputs while they are moved to their places. It is
// complete and on the disk before the first move, when everything that will be moved is, so whoever
// finds one whose run has ended can go on.

// journalMark begins the name of a journal: .loratool-commit-<host>-<random>.
const journalMark = ".loratool-commit-"

// commitTime is more than the moves of one commit take. A journal that is older has been left
// behind, even where no lock tells so.
const commitTime = time.Hour

// journal is what lies in each of the directories that a commit changes, under the same name.
type journal struct {
	paths []string
	locks []*os.File
}

// journalText is what a journal says. Paths are relative to its directory where they can be.
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

// newJournal writes the journal of moves into each of their directories.
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

// write makes one file of the journal, beside final. It appears whole, and locked where there are
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

// remove takes the journal away: the moves are done, or undone.
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

// Finish completes the commits in a directory whose runs were killed, for whoever wants to read
// what they have written.
func Finish(dir string) error {
	_, err := finish(dir)
	return err
}

// isJournal reports whether an entry of a directory is a journal, by its name.
func isJournal(e fs.DirEntry) bool {
	return strings.HasPrefix(e.Name(), journalMark) && e.Type().IsRegular()
}

// finish completes the commits in a directory whose runs have ended, and returns the places that
// got their outputs by that.
func finish(dir string) (finals []string, err error) {
	entries, _ := os.ReadDir(dir) // one that cannot be read tells nothing
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

// hasEnded reports whether the run of a journal that nobody on this machine has locked is over.
func hasEnded(path string, lock *os.File) bool {
	if lock != nil && strings.HasPrefix(filepath.Base(path), journalMark+hostTag()+"-") {
		return true
	}
	info, err := os.Lstat(path)
	return err == nil && time.Since(info.ModTime()) > commitTime
}

// finishOne goes on with the moves of a journal. Where an output has been removed meanwhile, what
// the others have replaced comes back.
func finishOne(dir, path string, lock *os.File) (finals []string, err error) {
	j := &journal{locks: []*os.File{lock}}
	replace, moves, err := readJournal(dir, path)
	if err != nil {
		j.unlock()
		return nil, nil // it is not one of ours, and nothing is done that it says
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

// readJournal reads what a journal says, and believes it only where every path is one that a stage
// would have.
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
			return false, nil, errors.New("a journal of moves that no commit makes")
		}
		moves = append(moves, move{temp: filepath.Join(parent, m.Temp), final: final, isDir: m.IsDir, id: m.ID})
	}
	if len(moves) < 2 {
		return false, nil, errors.New("a journal without moves")
	}
	return text.Replace, moves, nil
}
