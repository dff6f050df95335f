package output

import (
	"io/fs"
	"testing/fstest"
)

// FS returns the committed files as a file system, such as a base for checkpoint.OpenFS; it is
// empty before Commit. It reads the slices of Files, which must not change meanwhile. A result of a
// single file, called "", has no name there: read it from Files.
func (m *Memory) FS() fs.FS {
	files := make(fstest.MapFS) // the standard library's file system in memory; it pulls in no test code
	for name, content := range m.Files() {
		if name != "" {
			files[name] = &fstest.MapFile{Data: content, Mode: 0o444}
		}
	}
	return files
}
