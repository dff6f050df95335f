package parallel

import (
	"errors"
	"slices"
	"testing"
)

func TestEmitHandsOverInOrder(t *testing.T) {
	failure := errors.New("the end")
	for _, stopAt := range []int{0, 1, 50, 100} {
		var got []int
		ended := false
		err := Emit(func(emit func(int) error) error {
			defer func() { ended = true }()
			for i := range 100 {
				if err := emit(i); err != nil {
					return err
				}
			}
			return failure
		}, func(i int) bool {
			got = append(got, i)
			return i != stopAt
		})
		n, want := stopAt+1, error(nil)
		if stopAt == 100 {
			n, want = 100, failure
		}
		if !slices.Equal(got, upTo(n)) || err != want || !ended {
			t.Errorf("stopped at %d: got %d, error %v, ended %v; want the first %d and %v", stopAt, got, err, ended, n, want)
		}
	}
}

// TestEmitEndsWhenTakeDoesNotReturn: a panic or a failing test leaves no goroutine behind.
func TestEmitEndsWhenTakeDoesNotReturn(t *testing.T) {
	ended := false
	func() {
		defer func() {
			if recover() != "enough" {
				t.Error("the panic did not come through")
			}
		}()
		Emit(func(emit func(int) error) error {
			defer func() { ended = true }()
			if emit(1) == nil {
				t.Error("emit returned nil though take never returned")
			}
			return nil
		}, func(int) bool { panic("enough") })
	}()
	if !ended {
		t.Error("Emit left before run had ended")
	}
}
