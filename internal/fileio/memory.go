package fileio

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// linuxMemory is AvailableMemory from the files of Linux below root: /proc/meminfo, and the control
// groups of version 2 and of version 1, each with its parents, whose limits count as well.
func linuxMemory(root fs.FS) int64 {
	least := int64(math.MaxInt64)
	take := func(n int64, ok bool) {
		if ok {
			least = min(least, max(n, 1))
		}
	}
	for line := range strings.Lines(text(root, "proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			take(n<<10, err == nil)
		}
	}
	for line := range strings.Lines(text(root, "proc/self/cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 {
			continue
		}
		mount, limit, usage, cache := "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
		if parts[1] != "" {
			if parts[1] != "memory" {
				continue
			}
			mount, limit, usage, cache = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		}
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			dir := path.Join(mount, group)
			most, ok := number(root, path.Join(dir, limit))
			used, known := number(root, path.Join(dir, usage))
			take(most-used+reclaimable(root, dir, cache), ok && known)
			if group == "/" {
				break
			}
		}
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}

// reclaimable is the cache of files that counts as used, and goes where memory is needed.
func reclaimable(root fs.FS, dir, key string) int64 {
	for line := range strings.Lines(text(root, path.Join(dir, "memory.stat"))) {
		if rest, ok := strings.CutPrefix(line, key+" "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

// number reads a file with one number; "max" is none.
func number(root fs.FS, name string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text(root, name)), 10, 64)
	return n, err == nil && n < 1<<60 // version 1 says nearly 2^63 where there is no limit
}

func text(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(b)
}
