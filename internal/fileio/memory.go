package fileio

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// linuxMemory is AvailableMemory from the files of Linux below root: /proc/meminfo, and the control
// groups of version 2 and of version 1, each with its parents, whose limits count as well, and the
// limit of the process's address space.
func linuxMemory(root fs.FS) int64 {
	least := int64(math.MaxInt64)
	take := func(n int64, ok bool) {
		if ok {
			least = min(least, max(n, 1))
		}
	}
	available, known := field(text(root, "proc/meminfo"), "MemAvailable:")
	take(available<<10, known)
	take(addressSpace(root))
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

// addressSpace is what a limit such as that of ulimit -v leaves to this process; ok is false
// without one.
func addressSpace(root fs.FS) (left int64, ok bool) {
	limit, limited := field(text(root, "proc/self/limits"), "Max address space")
	used, known := field(text(root, "proc/self/status"), "VmSize:")
	return limit - used<<10, limited && known
}

// field is the number that follows a key at the start of a line of text.
func field(content, key string) (int64, bool) {
	for line := range strings.Lines(content) {
		rest, found := strings.CutPrefix(line, key)
		if words := strings.Fields(rest); found && len(words) > 0 {
			n, err := strconv.ParseInt(words[0], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// reclaimable is the cache of files that counts as used, and goes where memory is needed.
func reclaimable(root fs.FS, dir, key string) int64 {
	n, _ := field(text(root, path.Join(dir, "memory.stat")), key+" ")
	return n
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
