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

// The main road: a merge of one plain linear LoRA passes through few files, and does not ask any
// special case whether it applies.

// roadRooms are the packages whose files count.
var roadRooms = []string{"merge", "internal/resolve", "format/output"}

// mostOnRoad is the largest number of files that a plain merge may pass through. It may only
// decrease. It was 23 before a change became a pipeline of operations.
const mostOnRoad = 12

// TestPlainMergePassesThroughFewFiles builds the command with coverage of statements.
func TestPlainMergePassesThroughFewFiles(t *testing.T) {
	dir := t.TempDir()
	binary, notes := filepath.Join(dir, "loratool"), t.TempDir()
	rooms := []string{module + "/cmd/loratool"} // writes the coverage at exit
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

// output runs a command. Our own command leaves its coverage in the directory notes.
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

// statements reads a coverage profile: the number of executed statements per executed file, and all
// files.
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
