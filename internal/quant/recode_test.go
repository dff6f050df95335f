package quant

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestPackIsTheInverseOfUnpack for every width, with and without gaps.
func TestPackIsTheInverseOfUnpack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for bits := int64(1); bits <= 8; bits++ {
		for _, perWord := range []int64{0, 32 / bits} {
			const cols = 101
			p := packing{bits: bits, perWord: perWord}
			p.rowBytes = 4 * p.wordsOf(cols)
			want, got, row := make([]byte, cols), make([]byte, cols), make([]byte, p.rowBytes)
			for i := range want {
				want[i] = byte(rng.IntN(1 << bits))
			}
			for i := range row {
				row[i] = byte(rng.IntN(256))
			}
			p.pack(row, want)
			if p.unpack(got, row, 0); string(got) != string(want) {
				t.Errorf("%d bits, %d in a word: %v, want %v", bits, perWord, got, want)
			}
		}
	}
}

// TestNewCodeIsTheNearestOfAll compares with a search of all codes, where the numbers are exact.
func TestNewCodeIsTheNearestOfAll(t *testing.T) {
	tables := map[string]struct {
		table []float64
		bits  int64
	}{"E4M3": {e4m3[:], 8}, "INT8": {int8s[:], 8}, "E2M1": {e2m1[:], 4}, "E2M3": {e2m3[:], 6}}
	for bits := int64(1); bits <= 8; bits++ {
		tables[fmt.Sprint("INT", bits)] = struct {
			table []float64
			bits  int64
		}{offsetCodes[bits], bits}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for name, c := range tables {
		for _, scale := range []float64{1, 0x1.93p-7, -0x1.666666p-1, 0x1.1b57p-65, 0} {
			for _, offset := range []float64{0, 3 * scale} {
				for range 3000 {
					x := (rng.NormFloat64()*math.Exp(4*rng.NormFloat64()) + offset) * max(1e-30, math.Abs(scale))
					checkCode(t, name, c.table, c.bits, byte(rng.IntN(1<<c.bits)), scale, offset, x)
				}
				for code := range 1 << c.bits { // on the codes, and in the middle between them
					for _, other := range []int{code, max(0, code-1)} {
						checkCode(t, name, c.table, c.bits, byte(code), scale, offset, (c.table[code]+c.table[other])/2*scale+offset)
					}
				}
			}
		}
	}
}

func checkCode(t *testing.T, name string, table []float64, bits int64, was byte, scale, offset, x float64) {
	t.Helper()
	value := func(code int) float64 { return float64(table[code]*scale) + offset }
	r := &Recoding{Codes: []byte{was}, Was: []float64{value(int(was))}, Now: make([]float64, 1), Sum: []float64{float64(float32(x))}}
	r.Side = func(_ int, m float64) (int, error) {
		switch {
		case x < m:
			return -1, nil
		case x > m:
			return 1, nil
		}
		return 0, nil
	}
	codes := []byte{was}
	n := line{r: r, ladder: ladderOf(table, bits), scales: []float64{scale}, offsets: []float64{offset}, codes: codes}
	if err := n.recode(); err != nil {
		t.Fatal(err)
	}
	got := codes[0]
	if scale == 0 || x-x != 0 || r.Was[0] != r.Was[0] {
		if got != was {
			t.Fatalf("%s: code %#x became %#x", name, was, got)
		}
		return
	}
	if now := value(int(got)); now != r.Now[0] {
		t.Fatalf("%s: Now is %v, and the value of the code %v", name, r.Now[0], now)
	}
	distance := math.Abs(r.Now[0] - x)
	for code := range 1 << bits {
		switch d := math.Abs(value(code) - x); {
		case d < distance*(1-0x1p-50):
			t.Fatalf("%s: %v becomes code %#x with value %v, and %v of code %#x is nearer", name, x, got, r.Now[0], value(code), code)
		case d == distance && value(code) != r.Now[0] && got&1 == 1 && code&1 == 0:
			t.Fatalf("%s: %v becomes the odd code %#x of two", name, x, got)
		}
	}
	if r.Now[0] == r.Was[0] && got != was {
		t.Fatalf("%s: code %#x became %#x of the same value", name, was, got)
	}
}

// TestNewCodesKeepWhatIsNoNumber: NaN stays, and so do codes with a scale that is none.
func TestNewCodesKeepWhatIsNoNumber(t *testing.T) {
	s := &scaled{table: e4m3[:], codes: dense(8, 4), rows: 1, cols: 4, scales: blocks(dtype.F32, 1, 4, 1, 1)}
	r, _ := RecoderOf(s)
	codes := []byte{0x7f, 0xff, 0x38, 0x38}
	scales := make([]byte, 16)
	for i, x := range []float64{1, 1, math.NaN(), math.Inf(1)} {
		dtype.Store(dtype.F32, scales, i, x)
	}
	parts := memoryParts{codes, scales}
	x := &Recoding{Codes: append([]byte{}, codes...), Was: make([]float64, 4), Now: make([]float64, 4), Sum: []float64{1, 2, 3, 4}}
	if err := r.Decode(context.Background(), x.Was, 0, parts); err != nil {
		t.Fatal(err)
	}
	if err := r.Recode(context.Background(), x, parts); err != nil || string(x.Codes) != string(codes) {
		t.Errorf("the codes are %x, %v, want %x", x.Codes, err, codes)
	}
}
