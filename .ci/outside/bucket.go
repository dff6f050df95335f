package main

import (
	"errors"
	"io"
	"path"
	"sync"
	"testing/fstest"

	"github.com/loratool/loratool/format/output"
)

// bucket is an output like an object store. Each file is an upload of parts in any order, and
// Commit completes all uploads under a prefix. Nothing can be read before.
type bucket struct {
	under   string
	objects map[string][]byte // by key

	lock    sync.Mutex
	uploads map[string]*upload // by key; nil after Abort
}

// upload is an unfinished file: its parts by offset.
type upload struct {
	lock   sync.Mutex
	parts  map[int64][]byte
	closed bool
}

func (b *bucket) Create(info output.Info) (output.File, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	if b.uploads == nil {
		b.uploads = make(map[string]*upload)
	}
	u := &upload{parts: make(map[int64][]byte)}
	b.uploads[path.Join(b.under, info.Name)] = u
	return u, nil
}

func (u *upload) WriteAt(p []byte, off int64) (int, error) {
	u.lock.Lock()
	defer u.lock.Unlock()
	u.parts[off] = append([]byte{}, p...) // p belongs to the caller
	return len(p), nil
}

func (u *upload) CopyRange(off int64, src io.ReaderAt, srcOff, n int64) error {
	part := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(src, srcOff, n), part); err != nil {
		return err
	}
	_, err := u.WriteAt(part, off)
	return err
}

func (u *upload) Close() error {
	u.closed = true
	return nil
}

// bytes joins the parts. A gap between them is an error.
func (u *upload) bytes() ([]byte, error) {
	var object []byte
	for n := 0; n < len(u.parts); n++ {
		part, ok := u.parts[int64(len(object))]
		if !ok || len(part) == 0 {
			return nil, errors.New("a part of the upload is missing")
		}
		object = append(object, part...)
	}
	return object, nil
}

func (b *bucket) Commit() error {
	objects := make(map[string][]byte)
	for key, u := range b.uploads {
		object, err := u.bytes()
		if err != nil || !u.closed {
			return errors.Join(err, errors.New("the upload of "+key+" is not complete"))
		}
		objects[key] = object
	}
	b.objects, b.uploads = objects, nil
	return nil
}

func (b *bucket) Abort() { b.uploads = nil }

// fs shows the objects as files, with the path of the result: a directory or one file.
func (b *bucket) fs() (files fstest.MapFS, at string) {
	files = make(fstest.MapFS)
	for key, object := range b.objects {
		files[key] = &fstest.MapFile{Data: object}
	}
	return files, b.under
}
