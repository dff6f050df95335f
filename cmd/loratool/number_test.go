package main

import "testing"

// TestParseDecimalTakesWhatPeopleWrite: digits, a point, an exponent, and nothing that only Go
// reads.
func TestParseDecimalTakesWhatPeopleWrite(t *testing.T) {
	for text, want := range map[string]float64{"1": 1, "-0.7": -0.7, "+.5e1": 5, "2.": 2, "1e-3": 1e-3, "007": 7} {
		if got, ok := parseDecimal(text); !ok || got != want {
			t.Errorf("parseDecimal(%q) = %v, %v, want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "1_0", "1__0", "0x10", "0x1p4", "0x_1p2", "inf", "-Infinity", "nan", "1e999", "1,5", " 1", "1e", ".", "１"} {
		if got, ok := parseDecimal(text); ok {
			t.Errorf("parseDecimal(%q) = %v, want none", text, got)
		}
	}
}
