package page

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
)

// mostNames is how many names a fact lists.
const mostNames = 12

// someOf lists the first names, in order, and counts the others.
func someOf(names []string) string {
	names = slices.Sorted(slices.Values(names))
	if n := len(names) - mostNames; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNames], ", "), n)
	}
	return strings.Join(names, ", ")
}

// number is a number of things with separators.
func number[N ~int | ~int64](n N) string {
	text, _, _ := strings.Cut(fault.Count(n, ""), " ")
	return text
}

// size is the size of a matrix. One that only the base knows has none.
func size[N ~int | ~uint64](m, n N) string {
	if m == 0 && n == 0 {
		return ""
	}
	return fmt.Sprintf("%d×%d", m, n)
}

// dtypesText lists dtypes.
func dtypesText(counts []report.DTypeCount) string {
	return strings.Join(texts(counts, func(c report.DTypeCount) string { return c.DType }), ", ")
}

// typed is the type of a tensor, "" if there is none.
func typed(dtype string, shape []uint64) string {
	if dtype == "" {
		return ""
	}
	return fmt.Sprintf("%s %d", dtype, shape)
}

// figure is a number of a summary.
func figure(x float64) string { return fmt.Sprintf("%.4g", x) }

// ratio is a ÷ b, NaN if there is none.
func ratio(a, b float64) float64 {
	if b == 0 {
		return math.NaN()
	}
	return a / b
}

// texts describes each item.
func texts[T any](items []T, text func(T) string) (all []string) {
	for _, x := range items {
		all = append(all, text(x))
	}
	return all
}

// formatOf returns a format for numbers that align: as many decimals as the largest needs for the
// given number of digits, and none for whole numbers. A number that these would show as zero gets
// an exponent.
func formatOf(all []float64, digits int) func(float64) string {
	most := 0.0
	for _, v := range all {
		if v-v == 0 {
			most = max(most, math.Abs(v))
		}
	}
	size := int(math.Floor(math.Log10(most))) // of the first digit
	decimals := min(max(digits-1-size, 0), digits+2)
	areWhole := !slices.ContainsFunc(all, func(v float64) bool { return v-v == 0 && v != math.Trunc(v) })
	if areWhole = areWhole && size < 15; areWhole {
		decimals = 0
	}
	least := 0.5 * math.Pow10(-decimals)
	return func(v float64) string {
		switch {
		case v-v != 0:
			return ""
		case v == 0:
			return "0"
		case areWhole:
		case size > 6 || size < -3 || math.Abs(v) < least:
			return strconv.FormatFloat(v, 'e', digits-2, 64)
		}
		return strconv.FormatFloat(v, 'f', decimals, 64)
	}
}
