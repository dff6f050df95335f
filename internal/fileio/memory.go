package fileio

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// linuxMemory implements AvailableMemory from files below root: /proc/meminfo, the control groups
// of versions 1 and 2 with their parents, whose limits count as well, and the limit of the
// process's address space.
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

// linuxHeld implements HeldMemory from files below root.
func linuxHeld(root fs.FS) int64 {
	n, _ := field(text(root, "proc/self/status"), "VmRSS:")
	return n << 10
}

// addressSpace returns the rest of a limit such as that of ulimit -v; ok is false without a limit.
func addressSpace(root fs.FS) (left int64, ok bool) {
	limit, limited := field(text(root, "proc/self/limits"), "Max address space")
	used, known := field(text(root, "proc/self/status"), "VmSize:")
	return limit - used<<10, limited && known
}

// field returns the number after a key at the start of a line.
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

// reclaimable returns the file cache, which counts as used but shrinks on demand.
func reclaimable(root fs.FS, dir, key string) int64 {
	n, _ := field(text(root, path.Join(dir, "memory.stat")), key+" ")
	return n
}

// number reads a file with one number; "max" means no limit.
func number(root fs.FS, name string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text(root, name)), 10, 64)
	return n, err == nil && n < 1<<60 // version 1 has nearly 2^63 for no limit
}

func text(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(b)
}
