package main

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// decimal is a number as people write it. Go's parsers accept more, with surprising results: 1_0 is
// 10, 010 is 8, and 0x1p4 is 16.
var decimal = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$`)

// parseDecimal reads a finite number in decimal digits.
func parseDecimal(text string) (float64, bool) {
	if !decimal.MatchString(text) {
		return 0, false
	}
	x, err := strconv.ParseFloat(text, 64)
	return x, err == nil && !math.IsInf(x, 0)
}

// parseBytes reads a size such as 40MB or 1.5GiB.
func parseBytes(text string) (int64, error) {
	units := []struct {
		suffix string
		factor float64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		if x, ok := parseDecimal(strings.TrimSpace(number)); ok && x*u.factor >= 1 && x*u.factor < 1<<60 {
			return int64(x * u.factor), nil
		}
		break
	}
	return 0, usagef("a size is a number with a unit, such as 40MB or 512KiB", "got the size %q", text)
}
