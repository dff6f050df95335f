package output

import (
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/loratool/loratool/internal/fileio"
)

// Disk is an output in the file system: a directory, or a file with other files beside it. A Disk
// builds it under a hidden name next to its place, and Commit moves it there once everything is on
// the disk. The next Disk in the same directory removes the hidden files of a killed process. If
// the process was killed while Commit was moving several files, the next Disk moves the rest.
type Disk struct {
	path    string
	options DiskOptions
	stage   *fileio.Stage
	before  []*fileio.Stage // files beside the output; they appear before it
	after   []*fileio.Stage

	lock sync.Mutex
	open map[*diskFile]bool
}

// DiskOptions sets the options of a Disk. The zero value is a file that replaces nothing.
type DiskOptions struct {
	IsDir bool // a directory rather than a file
	// Replace lets Commit replace whatever is at the path. It replaces a directory only if the
	// output has a file of the same name for each file in it.
	Replace bool
	// Mode is the permissions of the directory that the result is made from. The new directory gets
	// no more than these, except that the owner keeps all; 0 means all that the umask allows.
	Mode fs.FileMode
	// Names lists the files that will be created in a directory, if known. NewDisk refuses names
	// that the system does not allow, and two names that the system would not tell apart.
	Names []string
}

// NewDisk starts an output at path. The parent directory must exist. Only Commit looks at what is
// at path.
func NewDisk(path string, o DiskOptions) (*Disk, error) {
	path = filepath.Clean(path)
	stage, err := fileio.NewStage(path, o.IsDir)
	if err != nil {
		return nil, err
	}
	d := &Disk{path: path, options: o, stage: stage, open: make(map[*diskFile]bool)}
	if o.IsDir && o.Mode != 0 {
		err = stage.Narrow(o.Mode)
	}
	if o.IsDir && err == nil {
		err = stage.Expect(o.Names)
	}
	if err != nil {
		d.Abort()
		return nil, err
	}
	return d, nil
}

// Create starts a file. In a directory, info.Name is the path below it. For a single file, "" is
// the output itself, and any other name is a file beside it, which appears first.
func (d *Disk) Create(info Info) (File, error) {
	if d.options.IsDir || info.Name == "" {
		return d.create(d.stage, info)
	}
	path := filepath.Join(filepath.Dir(d.path), filepath.FromSlash(info.Name))
	return d.createAt(path, &d.before, info)
}

// CreateAt starts a file with a path of its own, such as an undo record. It ignores info.Name. The
// file appears together with the output, after all other files.
func (d *Disk) CreateAt(path string, info Info) (File, error) {
	return d.createAt(filepath.Clean(path), &d.after, info)
}

func (d *Disk) createAt(path string, list *[]*fileio.Stage, info Info) (File, error) {
	stage, err := fileio.NewStage(path, false)
	if err != nil {
		return nil, err
	}
	d.lock.Lock()
	*list = append(*list, stage)
	d.lock.Unlock()
	info.Name = ""
	return d.create(stage, info)
}

func (d *Disk) create(stage *fileio.Stage, info Info) (File, error) {
	like := fileio.Like{Mode: info.Mode, Sparse: info.Sparse}
	file, err := stage.CreateLike(info.Name, info.Size, like)
	if err != nil {
		return nil, err
	}
	f := &diskFile{disk: d, file: file, sparse: info.Sparse, left: info.Size}
	d.lock.Lock()
	defer d.lock.Unlock()
	d.open[f] = true
	return f, nil
}

// Scratch makes a hidden file beside the output, where the disk has room.
func (d *Disk) Scratch() (Scratch, error) { return ScratchBeside(d.path) }

// stages returns the stages of all files, in the order in which they appear.
func (d *Disk) stages() []*fileio.Stage {
	return slices.Concat(d.before, []*fileio.Stage{d.stage}, d.after)
}

// Commit moves all files to their places, or none of them.
func (d *Disk) Commit() error { return fileio.Commit(d.options.Replace, d.stages()...) }

// Abort removes uncommitted files. It does not wait for the disk.
func (d *Disk) Abort() {
	for f := range d.open {
		f.file.Close()
	}
	clear(d.open)
	for _, stage := range d.stages() {
		stage.Abort()
	}
}

// diskFile is a file of a Disk.
type diskFile struct {
	disk    *Disk
	file    *fileio.File
	sparse  bool       // the input has holes, and the copy keeps them
	turn    sync.Mutex // held by the writer: the system allows one write at a time, and waiting for it costs time
	written int64      // bytes since the last hint to begin writing to the disk; under turn
	left    int64      // bytes until the file is complete, if known; under turn
}

// After hintBytes written bytes, the system is told that it may begin to move them to the disk.
const hintBytes = 16 << 20

// wrote counts n written bytes. The caller holds turn.
func (f *diskFile) wrote(n int64) {
	f.left -= n
	if f.written += n; f.written >= hintBytes || f.left == 0 {
		f.written = 0
		fileio.StartWriteback(f.file)
	}
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	f.turn.Lock()
	defer f.turn.Unlock()
	if f.sparse {
		err := fileio.WriteNonzero(f.file, p, off)
		f.wrote(int64(len(p)))
		return len(p), err
	}
	n, err := f.file.WriteAt(p, off)
	f.wrote(int64(n))
	return n, err
}

func (f *diskFile) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	err := fileio.CopyRange(f.file, off, src, srcOff, n)
	f.wrote(n)
	return err
}

// Close forces the file to the disk.
func (f *diskFile) Close() error {
	f.disk.lock.Lock()
	delete(f.disk.open, f)
	f.disk.lock.Unlock()
	return fileio.Close(f.file)
}
