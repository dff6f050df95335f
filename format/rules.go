package format

import (
	"fmt"

	"github.com/loratool/loratool/internal/fault"
)

// ruleKinds holds the kind of error that spec/FORMAT.md or spec/METHODS.md gives each rule, by its
// number. The numbers between are those of applying, in other packages.
var ruleKinds = [...]fault.Kind{
	1: ErrTruncated,

	2: ErrCorrupt, 3: ErrCorrupt, // the file
	4: ErrUnsupported, 5: ErrUnsupported, 6: ErrLimit, 7: ErrCorrupt, 8: ErrCorrupt, 9: ErrLimit, // head

	10: ErrCorrupt, 11: ErrCorrupt, 12: ErrCorrupt, 13: ErrCorrupt, 14: ErrCorrupt, 15: ErrCorrupt, // data frames
	16: ErrCorrupt, 17: ErrCorrupt,

	18: ErrCorrupt, 19: ErrCorrupt, 20: ErrCorrupt, 21: ErrCorrupt, 22: ErrCorrupt, 23: ErrCorrupt, // manifest text
	24: ErrLimit, 25: ErrLimit,

	26: ErrCorrupt, 27: ErrCorrupt, 28: ErrCorrupt, 29: ErrUnsupported, 30: ErrCorrupt, 31: ErrCorrupt, // records
	32: ErrLimit, 33: ErrCorrupt, 34: ErrCorrupt, 35: ErrCorrupt, 36: ErrCorrupt, 37: ErrCorrupt,
	38: ErrCorrupt, 39: ErrCorrupt, 40: ErrCorrupt, 41: ErrCorrupt, 42: ErrCorrupt, 43: ErrCorrupt,
	44: ErrCorrupt, 45: ErrCorrupt, 46: ErrCorrupt, 47: ErrCorrupt, 48: ErrCorrupt, 49: ErrLimit,
	50: ErrLimit, 51: ErrLimit, 52: ErrCorrupt, 53: ErrCorrupt, 54: ErrCorrupt, 55: ErrCorrupt,

	56: ErrLimit, 57: ErrLimit, // chunks

	58: ErrCorrupt, 59: ErrCorrupt, 60: ErrCorrupt, 61: ErrCorrupt, 62: ErrCorrupt, // digests
	63: ErrCorrupt, 64: ErrCorrupt, 65: ErrCorrupt, 66: ErrCorrupt, // seek table

	67: ErrCorrupt, 68: ErrCorrupt, 69: ErrCorrupt, 70: ErrUnsupported, // restoring and applying, in other packages

	71: ErrCorrupt, 72: ErrCorrupt, 73: ErrCorrupt, // the kinds of version 1.1
	74: ErrUnsupported, 75: ErrUnsupported, 76: ErrUnsupported, // applying, in other packages

	ruleShared: ErrCorrupt, // critical bit 0

	133: ErrCorrupt, 134: ErrCorrupt, 135: ErrCorrupt, 136: ErrCorrupt, // spec/METHODS.md
}

// broken returns the error for bytes that break a rule of the specification. The message gives the
// value found and the value expected.
func broken(rule int, format string, args ...any) *fault.Error {
	return &fault.Error{Kind: ruleKinds[rule], Rule: fmt.Sprintf("R%d", rule), Msg: fmt.Sprintf(format, args...)}
}

// VerifiedRules returns the rules that Verify, or a StreamReader at its end, has checked a valid
// file against, in ascending order: "R1" and so on. The other rules are for programs that restore
// a source file or apply an adapter (spec section 15).
func VerifiedRules() []string {
	var rules []string
	for n := 1; n < len(ruleKinds); n++ {
		restoring, applying := n >= 67 && n <= 69, n == 70 || n >= 74 && n <= 76
		if ruleKinds[n] != "" && !restoring && !applying {
			rules = append(rules, fmt.Sprintf("R%d", n))
		}
	}
	return rules
}
