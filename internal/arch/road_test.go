package arch

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The main road: a merge of one plain linear LoRA passes through few files, and asks no special
// case whether it is there.

// roadRooms are the rooms of a merge whose files count.
var roadRooms = []string{"merge", "internal/resolve"}

// mostOnRoad is how many files the merge may pass through. The aim is 12; until it holds, the
// number may only become smaller.
const mostOnRoad = 15

// TestPlainMergePassesThroughFewFiles builds the command so that it notes which statements run.
func TestPlainMergePassesThroughFewFiles(t *testing.T) {
	dir := t.TempDir()
	binary, notes := filepath.Join(dir, "loratool"), t.TempDir()
	rooms := []string{module + "/cmd/loratool"} // which writes the notes when it ends
	for _, room := range roadRooms {
		rooms = append(rooms, module+"/"+room)
	}
	output(t, "", "go", "build", "-cover", "-coverpkg="+strings.Join(rooms, ","), "-o", binary, "../../cmd/loratool")
	const demo = "../../testdata/demo"
	output(t, notes, binary, "merge", demo+"/base", demo+"/adapter-r8", "-o", filepath.Join(dir, "out"))
	profile := filepath.Join(dir, "profile")
	output(t, "", "go", "tool", "covdata", "textfmt", "-i", notes, "-o", profile)
	passed, all := statements(t, profile)
	if len(all) < 10 {
		t.Fatalf("the profile has %d files, want those of %q", len(all), roadRooms)
	}
	t.Logf("passed through %d of %d files: %s", len(passed), len(all), strings.Join(slices.Sorted(maps.Keys(passed)), " "))
	if len(passed) > mostOnRoad {
		t.Errorf("a plain merge passes through %d files, want at most %d: %q", len(passed), mostOnRoad, slices.Sorted(maps.Keys(passed)))
	}
}

// output runs a command, which leaves its notes in a directory if it is one of ours.
func output(t *testing.T, notes, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(cmd.Environ(), "GOCOVERDIR="+notes)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, stderr.Bytes())
	}
	return out
}

// statements reads a profile: the files in which a statement ran, with their number, and all files.
func statements(t *testing.T, profile string) (passed, all map[string]int) {
	t.Helper()
	text, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	passed, all = make(map[string]int), make(map[string]int)
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		file, rest, ok := strings.Cut(line, ":")
		if !ok || file == "mode" {
			continue
		}
		file = strings.TrimPrefix(file, module+"/")
		if room, _, _ := cutLast(file, "/"); !slices.Contains(roadRooms, room) {
			continue
		}
		all[file]++
		if !strings.HasSuffix(rest, " 0") {
			passed[file]++
		}
	}
	return passed, all
}
