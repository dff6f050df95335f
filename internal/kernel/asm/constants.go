package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

var known = make(map[string]Mem)

// constant returns the memory of a number, stored once and repeated over 32 bytes: a vector for
// AVX2, a number to broadcast for AVX-512.
func constant(name string, x Constant) Mem {
	if m, ok := known[name]; ok {
		return m
	}
	m := GLOBL(name, attr.RODATA|attr.NOPTR)
	for i := 0; i < 32; i += x.Bytes() {
		DATA(i, x)
	}
	known[name] = m
	return m
}

func integer(name string, x uint32) Mem { return constant(name, U32(x)) }
func single(name string, x float32) Mem { return constant(name, U32(math.Float32bits(x))) }
func double(name string, x float64) Mem { return constant(name, U64(math.Float64bits(x))) }

// slack returns the error of t = w + δ and t ± e in units of |t|: slack32, slack64 or slackWidened
// of the portable kernel.
func (b base) slack() Mem {
	if b.size == 4 && b.isWidened() {
		return single("slackWidened", 0x1.808p-23)
	}
	if b.size == 4 {
		return single("slack32", 0x1.004p-23)
	}
	return double("slack64", 0x1.004p-52)
}

// absMask returns a mask that clears the sign of a number.
func (b base) absMask() Mem {
	if b.size == 4 {
		return integer("abs32", 1<<31-1)
	}
	return constant("abs64", U64(1<<63-1))
}

// one returns the integer 1, as wide as a number.
func (b base) one() Mem {
	if b.size == 4 {
		return integer("one32", 1)
	}
	return constant("one64", U64(1))
}

// words returns the memory of 32 constants, stored once.
func words(name string, x [32]uint16) Mem {
	if m, ok := known[name]; ok {
		return m
	}
	m := GLOBL(name, attr.RODATA|attr.NOPTR)
	for i, x := range x {
		DATA(2*i, U16(x))
	}
	known[name] = m
	return m
}

// param returns the memory of an argument of the function.
func param(name string) Mem {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return p.Addr
}
