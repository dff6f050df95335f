package format_test

import (
	"log"
	"os"
	"testing"
)

var exampleDir string // where examples write files

func TestMain(m *testing.M) {
	var err error
	if exampleDir, err = os.MkdirTemp("", "format"); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	os.RemoveAll(exampleDir)
	os.Exit(code)
}
