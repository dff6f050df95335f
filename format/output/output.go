// Package output decides where results go: a merged checkpoint, a converted adapter, an extracted
// adapter. A writer of results sees only the interface [Output]. [Disk] writes to the file system,
// [Memory] keeps the files in memory.
//
// Functions that take a path make a Disk themselves. Implement Output to send a result elsewhere,
// such as an object store or an archive: Create begins an upload, WriteAt and CopyRange send its
// parts, Commit publishes all files, and Abort removes the parts.
package output

import (
	"io"
	"io/fs"
)

// Output is a set of files that appear together or not at all. Several goroutines may call Create
// and the methods of the files at once; Commit and Abort come after all other calls have returned.
type Output interface {
	// Create starts a file. Each name is used only once.
	Create(info Info) (File, error)
	// Commit makes the files appear. All of them have been closed.
	Commit() error
	// Abort ends the output. Every run calls it last, also after Commit, and it may be called
	// twice. After a successful Commit it must leave the files alone. In all other cases, also
	// after a failed Commit, it removes the files written so far and closes those that are open. If
	// no run has received the output, its creator calls Abort.
	Abort()
}

// Info describes a file of an output.
type Info struct {
	// Name is the slash-separated path of the file within the result. It is "" if the result is a
	// single file, which the output names itself.
	Name   string
	Size   int64       // in bytes; 0 means unknown: the file grows as it is written
	Mode   fs.FileMode // permissions of the file it is made from; 0 means the default
	Sparse bool        // the file it is made from has holes, so no room need be reserved
}

// File is a file being written. Every byte is written once, in any order.
type File interface {
	io.WriterAt
	// CopyRange copies n bytes of src from offset srcOff to offset off of the file.
	CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error
	// Close ends the file and returns any write error not reported before.
	Close() error
}
