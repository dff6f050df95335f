package fileio

import "os"

// Temp is a temporary file. Closing it removes it.
type Temp struct{ *os.File }

// TempDir returns the directory for temporary files.
func TempDir() string { return os.TempDir() }

// NewTemp creates a temporary file. It removes the name at once where the system allows that, so
// that a killed process leaves nothing behind; Windows keeps the name of an open file.
func NewTemp() (*Temp, error) {
	f, err := os.CreateTemp("", "loratool-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	return &Temp{f}, nil
}

// Close closes and removes the file.
func (t *Temp) Close() error {
	err := t.File.Close()
	os.Remove(t.Name())
	return err
}
