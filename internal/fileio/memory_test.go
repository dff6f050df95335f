package fileio

import (
	"testing"
	"testing/fstest"
)

func TestHeldMemoryIsTheResidentSet(t *testing.T) {
	root := fstest.MapFS{"proc/self/status": {Data: []byte("VmPeak:\t  9000 kB\nVmRSS:\t    1500 kB\n")}}
	if got := linuxHeld(root); got != 1500<<10 {
		t.Errorf("held memory = %d, want %d", got, 1500<<10)
	}
	if got := HeldMemory(); got < 1<<20 {
		t.Errorf("this process holds %d bytes, want more than 1 MiB", got)
	}
}

// TestAvailableMemoryIsTheLeastOfAllLimits uses files as documented in proc(5) and in the kernel's
// guides to control groups of versions 1 and 2.
func TestAvailableMemoryIsTheLeastOfAllLimits(t *testing.T) {
	const meminfo = "MemTotal:       8000 kB\nMemFree:        100 kB\nMemAvailable:   5000 kB\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing", nil, 0},
		{"no group", map[string]string{"proc/meminfo": meminfo}, 5000 << 10},
		{"version 2 without a limit", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "4096\n",
		}, 5000 << 10},
		{"version 2, the limit of a parent", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "4096\n",
			"sys/fs/cgroup/a/memory.max": "2000000\n", "sys/fs/cgroup/a/memory.current": "1500000\n",
			"sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 200000\n",
		}, 700000},
		{"version 2, a container that sees its group as the root", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "1000000\n", "sys/fs/cgroup/memory.current": "400000\n",
		}, 600000},
		{"version 1", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "900000\n", "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "100000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
		}, 800000},
		{"more used than allowed", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "4000\n",
		}, 1},
		{"a limit of the address space", map[string]string{
			"proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n" +
				"Max address space         1536000000           unlimited            bytes     \n",
			"proc/self/status": "VmPeak:\t 1250000 kB\nVmSize:\t 1200000 kB\n",
		}, 1536000000 - 1200000<<10},
		{"an address space without a limit", map[string]string{
			"proc/meminfo":     meminfo,
			"proc/self/limits": "Max address space         unlimited            unlimited            bytes     \n",
			"proc/self/status": "VmSize:\t 1200000 kB\n",
		}, 5000 << 10},
	} {
		root := make(fstest.MapFS)
		for name, content := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(content)}
		}
		if got := linuxMemory(root); got != c.want {
			t.Errorf("%s: %d bytes, want %d", c.name, got, c.want)
		}
	}
}
