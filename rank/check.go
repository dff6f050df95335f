package rank

import (
	"errors"
	"fmt"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// check refuses options outside of their documented ranges.
func (o *ExtractOptions) check() error {
	switch d := o.DType; {
	case (o.Rule == nil) == (o.Budget == 0):
		return errors.New("ExtractOptions: set either Rule or Budget")
	case o.Path != "" && o.Output != nil:
		return errors.New("ExtractOptions: set at most one of Path and Output")
	case o.Budget < 0:
		return fmt.Errorf("ExtractOptions.Budget is %d, want a positive number of bytes", o.Budget)
	case o.ConvRank < 0:
		return fmt.Errorf("ExtractOptions.ConvRank is %d, want at least 1, or 0 to let Rule choose",
			o.ConvRank)
	case o.ConvRank > 0 && o.Rule == nil:
		return fmt.Errorf("ExtractOptions.ConvRank is %d, but a Budget chooses all ranks", o.ConvRank)
	case o.MaxRank < 0:
		return fmt.Errorf("ExtractOptions.MaxRank is %d, want at least 1, or 0 for %d",
			o.MaxRank, defaultBudgetRank)
	case o.MaxRank > 0 && o.Rule != nil:
		return fmt.Errorf("ExtractOptions.MaxRank is %d, but only a Budget uses it: "+
			"a rule has a maximum of its own", o.MaxRank)
	case d != dtype.Invalid && d != dtype.F32 && d != dtype.F16 && d != dtype.BF16:
		return fmt.Errorf("ExtractOptions.DType is %v, want F32, F16 or BF16, or 0 for F32", d)
	case o.Rule == nil:
		return o.SVD.check()
	}
	return errors.Join(checkRule(o.Rule), o.SVD.check())
}

// check refuses a tolerance that no decomposition can meet.
func (o *Options) check() error {
	if !(o.Tolerance >= 0) {
		return fmt.Errorf("the tolerance of the SVD is %v, want a positive number, or 0 for %v",
			o.Tolerance, defaultTolerance)
	}
	return nil
}

// checkRule refuses a rule of this package with a number outside of its range.
func checkRule(rule Rule) error {
	if r, ok := rule.(interface{ check() error }); ok {
		return r.check()
	}
	return nil
}

func (f FixedRank) check() error {
	if f.K < 1 {
		return fmt.Errorf("FixedRank.K is %d, want at least 1", f.K)
	}
	return nil
}

func (e EnergyShare) check() error {
	if !(e.Share > 0 && e.Share <= 1) {
		return fmt.Errorf("EnergyShare.Share is %v, want more than 0 and at most 1", e.Share)
	}
	return checkMax("EnergyShare.Max", e.Max)
}

func (e maxError) check() error {
	if !(e.relative > 0 && e.relative < 1) {
		return fmt.Errorf("the relative error of MaxError is %v, want more than 0 and less than 1",
			e.relative)
	}
	return checkMax("the maxRank of MaxError", e.most)
}

func (f NoiseFloor) check() error {
	if !(f.Sigma >= 0) || math.IsInf(f.Sigma, 1) {
		return fmt.Errorf("NoiseFloor.Sigma is %v, want a finite number of at least 0", f.Sigma)
	}
	return checkMax("NoiseFloor.Max", f.Max)
}

// checkMax checks the largest rank that a rule may choose.
func checkMax(what string, most int) error {
	if most < 0 {
		return fmt.Errorf("%s is %d, want at least 1, or 0 for no limit", what, most)
	}
	return nil
}

// defaultBudgetRank is the largest rank of a layer under a budget if MaxRank is 0.
const defaultBudgetRank = 64
