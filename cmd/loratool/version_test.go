package main

import (
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// TestLicencesAreThoseOfWhatIsLinkedIn compares the embedded files with those of the modules that
// the go command links on the systems that we build for, and of Go.
func TestLicencesAreThoseOfWhatIsLinkedIn(t *testing.T) {
	want := make(map[string]string)
	for module, dir := range linkedModules(t) {
		files := noticesIn(t, dir)
		if len(files) == 0 {
			t.Errorf("%s has no licence in %s", module, dir)
		}
		for _, file := range files {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			want[path.Join(module, path.Base(filepath.ToSlash(file)))] = string(text)
		}
	}
	if *update {
		writeLicences(t, want)
		return
	}
	got := make(map[string]string)
	all, err := readLicences()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		got[l.Module+"/"+l.File] = l.Text
	}
	if lacks, extra := keysOnlyIn(want, got), keysOnlyIn(got, want); len(lacks)+len(extra) > 0 {
		t.Errorf("the embedded licences lack %q, and have %q too many (-run Licence -update writes them)", lacks, extra)
	}
	for name, text := range want {
		if got[name] != "" && got[name] != text {
			t.Errorf("the embedded %s differs from the module's file (-run Licence -update writes it)", name)
		}
	}
}

// linkedModules returns the directories of the modules that the command is made of.
func linkedModules(t *testing.T) map[string]string {
	dirs := make(map[string]string)
	list := func(system string, args ...string) string {
		cmd := exec.Command("go", args...)
		os, arch, _ := strings.Cut(system, "/")
		cmd.Env = append(cmd.Environ(), "GOOS="+os, "GOARCH="+arch, "GOFLAGS=-mod=readonly")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	for _, system := range []string{"linux/amd64", "darwin/arm64", "windows/amd64", "js/wasm"} {
		for _, line := range strings.Split(list(system, "list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Dir}}{{end}}", "."), "\n") {
			if module, dir, ok := strings.Cut(line, " "); ok {
				dirs[module] = dir
			}
		}
	}
	if len(dirs) < 5 {
		t.Fatalf("go list names %d modules, want at least 5", len(dirs))
	}
	dirs["std"] = list("linux/amd64", "env", "GOROOT")
	dirs["github.com/leeoniya/uPlot"] = "../../internal/page/assets/uplot"  // in the pages of reports
	dirs["github.com/ggml-org/llama.cpp"] = "../../internal/ggml/llama.cpp" // the grids of blocks of GGUF
	return dirs
}

var noticeName = regexp.MustCompile(`^(LICEN[CS]E|COPYING|NOTICE|PATENTS)(\.txt|\.md)?$`)

// noticesIn returns the files of a module that have to go with it. gonum has further ones in a
// directory.
func noticesIn(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if noticeName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	others, err := filepath.Glob(filepath.Join(dir, "THIRD_PARTY_LICENSES", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		names = append(names, filepath.Join("THIRD_PARTY_LICENSES", filepath.Base(other)))
	}
	return names
}

func keysOnlyIn(a, b map[string]string) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for k := range maps.Keys(a) {
			if _, ok := b[k]; !ok && !yield(k) {
				return
			}
		}
	})
}

func writeLicences(t *testing.T, files map[string]string) {
	if err := os.RemoveAll("licences"); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		file := filepath.Join("licences", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVersionNamesTheCommitAndGo(t *testing.T) {
	settings := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "0123abcd"}, {Key: "vcs.modified", Value: "true"}}
	got := builtFrom(&debug.BuildInfo{GoVersion: "go1.26.9", Settings: settings}, true)
	if want := (build{"0123abcd", true, "go1.26.9"}); got != want {
		t.Errorf("builtFrom(%v) = %v, want %v", settings, got, want)
	}
	if got := builtFrom(nil, false); got.commit != "" || !strings.HasPrefix(got.release, "go") {
		t.Errorf("builtFrom(nothing) = %v, want no commit, and the release of Go", got)
	}
}
