//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernels times the benchmarks of internal/kernel in the work tree and at another revision. The two
// test binaries run in turn, one benchmark at a time. Other load only adds to a time, so the least
// time counts.
func (s *setting) kernels() error {
	current, err := testBinary(".", s.path("kernels-new"))
	if err != nil {
		return err
	}
	before, remove, err := s.binaryAt(s.against)
	if err != nil {
		return err
	}
	defer remove()
	names, err := benchmarks(current, s.bench)
	if err != nil {
		return err
	}
	fmt.Printf("| benchmark | %s, ms | now, ms | ratio |\n|---|---:|---:|---:|\n", s.against)
	for _, name := range names {
		var best [2]float64
		for range s.runs + 1 {
			for i, binary := range []string{before, current} {
				ms, err := runBenchmark(binary, name)
				if err != nil {
					return err
				}
				if ms > 0 && (best[i] == 0 || ms < best[i]) {
					best[i] = ms
				}
			}
		}
		if best[0] == 0 {
			fmt.Printf("| %s | – | %.3g | – |\n", name, best[1])
			continue
		}
		fmt.Printf("| %s | %.3g | %.3g | %.2f |\n", name, best[0], best[1], best[1]/best[0])
	}
	return nil
}

// testBinary builds the tests of internal/kernel of the repository in root.
func testBinary(root, out string) (string, error) {
	out, err := filepath.Abs(out)
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "test", "-c", "-o", out, "./internal/kernel")
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, text)
	}
	return out, nil
}

// binaryAt is testBinary of another revision, checked out for the purpose. remove deletes the
// checkout.
func (s *setting) binaryAt(revision string) (binary string, remove func(), err error) {
	tree, err := os.MkdirTemp(s.dir, "kernels-")
	if err != nil {
		return "", nil, err
	}
	git := func(args ...string) error {
		if text, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, text)
		}
		return nil
	}
	if err := git("worktree", "add", "--detach", tree, revision); err != nil {
		return "", nil, err
	}
	remove = func() {
		if err := git("worktree", "remove", "--force", tree); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	if binary, err = testBinary(tree, s.path("kernels-old")); err != nil {
		remove()
		return "", nil, err
	}
	return binary, remove, nil
}

// benchmarks lists the benchmarks that match a pattern, by running each once.
func benchmarks(binary, pattern string) (names []string, err error) {
	lines, err := benchmarkLines(binary, pattern, 1)
	for _, fields := range lines {
		names = append(names, fields[0])
	}
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no benchmark of internal/kernel matches %q", pattern)
	}
	return names, err
}

// runBenchmark runs one benchmark and returns its time in milliseconds, or 0 if the binary lacks
// it.
func runBenchmark(binary, name string) (ms float64, err error) {
	exactly := "^" + strings.ReplaceAll(regexp.QuoteMeta(name), "/", "$/^") + "$"
	lines, err := benchmarkLines(binary, exactly, 3)
	if err != nil {
		return 0, err
	}
	for _, fields := range lines {
		if i := slices.Index(fields, "ns/op"); i > 0 {
			ns, err := strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				return 0, err
			}
			if ms == 0 || ns/1e6 < ms {
				ms = ns / 1e6
			}
		}
	}
	return ms, nil
}

// benchmarkLines runs the benchmarks that match a pattern, count times with one iteration each, and
// returns the fields of each result line.
func benchmarkLines(binary, pattern string, count int) (lines [][]string, err error) {
	cmd := exec.Command(binary, "-test.run", "^$", "-test.bench", pattern, "-test.cpu", "1",
		"-test.benchtime", "1x", "-test.count", strconv.Itoa(count))
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", binary, err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Benchmark") {
			lines = append(lines, strings.Fields(line))
		}
	}
	return lines, nil
}
