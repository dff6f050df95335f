//go:build unix

package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// contender is a timed command. out, if any, is removed before and after each run.
type contender struct {
	name string
	args []string
	out  string
}

// measure holds the figures of one run.
type measure struct {
	wall   time.Duration
	cpu    time.Duration
	maxRSS int64 // bytes
}

// race runs the contenders in turn, once to warm up and then runs times, and returns the measures
// of each. It flushes the disk before each run.
func race(contenders []contender, runs int) ([][]measure, error) {
	results := make([][]measure, len(contenders))
	for run := range runs + 1 {
		for i, c := range contenders {
			m, err := c.run()
			if err != nil {
				return nil, err
			}
			if run > 0 {
				results[i] = append(results[i], m)
			}
		}
	}
	return results, nil
}

func (c *contender) run() (m measure, err error) {
	if c.out != "" {
		if err := os.RemoveAll(c.out); err != nil {
			return m, err
		}
		defer os.RemoveAll(c.out)
	}
	syscall.Sync()
	cmd := exec.Command(c.args[0], c.args[1:]...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	m.wall = time.Since(start)
	if err != nil {
		return m, fmt.Errorf("%s: %w: %s", c.name, err, out)
	}
	m.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.maxRSS = int64(u.Maxrss) << 10 // kilobytes on Linux
	}
	return m, nil
}

func median[T cmp.Ordered](ms []measure, f func(measure) T) T {
	values := make([]T, len(ms))
	for i, m := range ms {
		values[i] = f(m)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func seconds(m measure) float64    { return m.wall.Seconds() }
func cpuSeconds(m measure) float64 { return m.cpu.Seconds() }
func megabytes(m measure) float64  { return float64(m.maxRSS) / 1e6 }

// ratio returns the median over the rounds of a's time divided by b's.
func ratio(a, b []measure) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].wall.Seconds() / b[i].wall.Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// table prints the measures, with ratios to the first contenders; ratios is their number.
func table(contenders []contender, results [][]measure, ratios int) {
	fmt.Print("| command | wall, s (min – max) | CPU, s |")
	for _, c := range contenders[:ratios] {
		fmt.Printf(" ÷ %s |", c.name)
	}
	fmt.Print(" peak memory, MB |\n|---|---:|---:|")
	for range ratios + 1 {
		fmt.Print("---:|")
	}
	fmt.Println()
	for i, c := range contenders {
		ms := results[i]
		byWall := func(a, b measure) int { return cmp.Compare(a.wall, b.wall) }
		fmt.Printf("| %s | %.3g (%.3g – %.3g) | %.3g |", c.name, median(ms, seconds),
			seconds(slices.MinFunc(ms, byWall)), seconds(slices.MaxFunc(ms, byWall)), median(ms, cpuSeconds))
		for k := range ratios {
			fmt.Printf(" %.2f |", ratio(ms, results[k]))
		}
		fmt.Printf(" %.0f |\n", median(ms, megabytes))
	}
	fmt.Println()
}
