// Package output is where results are written: a merged checkpoint, a converted or an extracted
// adapter. Whoever writes knows the interface [Output] only. [Disk] is one in the file system,
// [Memory] keeps the files in memory.
//
// Functions that take a path make a Disk themselves. Write an Output of your own when the result
// belongs elsewhere: in an object store, in an archive, behind a network. Create begins an upload,
// WriteAt and CopyRange send its parts, Commit publishes all files, and Abort removes the parts.
package output

import (
	"io"
	"io/fs"
)

// Output is where a result is written: files that appear together, or not at all. Create and the
// methods of the files may be called from several goroutines at once, Commit and Abort when all
// other calls have returned.
type Output interface {
	// Create begins a file. Each name is used once.
	Create(info Info) (File, error)
	// Commit makes the files appear, when all of them have been closed.
	Commit() error
	// Abort removes the files written so far, closes the files that a failed run left open, and may
	// be called twice. After Commit it does nothing. A run that fails calls it; whoever made an
	// output that no run got calls it himself.
	Abort()
}

// Info describes a file of an output.
type Info struct {
	// Name is that of the file within the result, with slashes; "" for a result that is one file,
	// whose name is the output's affair.
	Name   string
	Size   int64       // in bytes; 0 is not known: the file grows as it is written
	Mode   fs.FileMode // permissions of the file that it is made from; 0 says nothing
	Sparse bool        // that file has holes, so that no room need be reserved
}

// File is a file of an output in the making. Every byte is written once, in any order.
type File interface {
	io.WriterAt
	// CopyRange copies n bytes of src from srcOff to off.
	CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error
	// Close ends the file: an error of writing that has not come up yet comes up here.
	Close() error
}
