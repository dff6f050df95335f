package quant

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// memoryParts are the parts of a weight in memory.
type memoryParts [][]byte

func (m memoryParts) ReadPart(_ context.Context, p []byte, part int, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(m[part])) {
		return fmt.Errorf("%d bytes at %d of part %d, which has %d: %w", len(p), off, part, len(m[part]), io.ErrUnexpectedEOF)
	}
	copy(p, m[part][off:])
	return nil
}

// TestScaledIsItsFormula compares every option with the formula: widths of codes with and without
// gaps, zero points, lists of groups, and a scale that multiplies or divides.
func TestScaledIsItsFormula(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	for range 400 {
		const matrices = 2
		rows, cols := 1+rng.Int64N(9), 1+rng.Int64N(80)
		bits := 1 + rng.Int64N(8)
		p := dense(bits, cols)
		if rng.IntN(2) == 0 {
			p.rowBytes = (p.rowBytes + 3) / 4 * 4
		}
		if rng.IntN(3) == 0 {
			p.perWord = 32 / bits
			p.rowBytes = (cols + p.perWord - 1) / p.perWord * 4
		}
		s := &scaled{codes: p, rows: rows, cols: cols, scales: blocks(dtype.BF16, rows, cols, 1+rng.Int64N(3), 1+rng.Int64N(40))}
		for i := range 256 {
			s.table = append(s.table, float64(i)-128)
		}
		if p.isPlain() && p.bits == 4 {
			s.table = s.table[:16]
		}
		g := s.scales
		parts := memoryParts{make([]byte, matrices*rows*p.rowBytes), make([]byte, 2*matrices*g.down*g.across), nil, nil, nil}
		codes := make([]uint64, matrices*rows*cols)
		for i := range codes {
			codes[i] = rng.Uint64N(1 << bits)
			row, col := int64(i)/cols, int64(i)%cols
			at := col * bits
			if p.perWord > 0 {
				at = col/p.perWord*32 + col%p.perWord*bits
			}
			for b := range bits {
				parts[0][row*p.rowBytes+(at+b)/8] |= byte(codes[i]>>b&1) << ((at + b) % 8)
			}
		}
		for i := range len(parts[1]) / 2 {
			dtype.Store(dtype.BF16, parts[1], i, rng.NormFloat64())
		}
		if rng.IntN(2) == 0 {
			s.zeros = plainZeros{2, dtype.I8}
			for range len(parts[1]) / 2 {
				parts[2] = append(parts[2], byte(rng.IntN(256)))
			}
		}
		if rng.IntN(3) == 0 {
			s.order = 3
			for range cols {
				parts[3] = binary.LittleEndian.AppendUint32(parts[3], uint32(rng.Int64N(g.across)))
			}
		}
		if rng.IntN(2) == 0 {
			s.whole = whole{4, rng.IntN(2) == 0}
			for range matrices {
				parts[4] = binary.LittleEndian.AppendUint32(parts[4], math.Float32bits(float32(rng.NormFloat64())))
			}
		}
		want := make([]float64, len(codes))
		for i, code := range codes {
			row, col := int64(i)/cols, int64(i)%cols
			group := col / g.width
			if s.order > 0 {
				group = int64(parts[3][4*col])
			}
			k := int((row/rows*g.down+row%rows/g.height)*g.across + group)
			x := float64(code) - 128
			if s.zeros != nil {
				x -= float64(int8(parts[2][k]))
			}
			x *= dtype.Load(dtype.BF16, parts[1], k)
			switch {
			case s.whole.part == 0:
			case s.whole.divides:
				x /= dtype.Load(dtype.F32, parts[4], int(row/rows))
			default:
				x *= dtype.Load(dtype.F32, parts[4], int(row/rows))
			}
			want[i] = x
		}
		for range 5 {
			at := rng.IntN(len(codes))
			got := make([]float64, 1+rng.IntN(len(codes)-at))
			if err := s.Decode(t.Context(), got, int64(at), parts); err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			for i, x := range got {
				if x != want[at+i] {
					t.Fatalf("%+v: element %d, read from %d on, is %v, want %v", *s, at+i, at, x, want[at+i])
				}
			}
		}
	}
}

// TestGroupsOutOfRangeAreAnError: a file can change after its list of groups was checked.
func TestGroupsOutOfRangeAreAnError(t *testing.T) {
	s := &scaled{table: int8s[:], codes: dense(8, 2), rows: 1, cols: 2, scales: blocks(dtype.I8, 1, 2, 1, 1), order: 2}
	for _, group := range []int32{-1, 2} {
		parts := memoryParts{{1, 1}, {1, 1}, binary.LittleEndian.AppendUint32(make([]byte, 4), uint32(group))}
		if err := s.Decode(t.Context(), make([]float64, 2), 0, parts); err == nil {
			t.Errorf("group %d of 2 is decoded", group)
		}
	}
}
