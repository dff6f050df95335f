package kernel

import (
	"math/bits"
	"strings"
)

func (m *machine) scalar(in *instruction) bool {
	a := in.args
	size := 8
	if strings.HasSuffix(in.op, "L") {
		size = 4
	}
	result := func(x uint64) {
		m.set(a[len(a)-1], x, size)
		m.zero = x<<(64-8*size) == 0
	}
	switch op := in.op; op {
	case "PREFETCHT0", "VZEROUPPER":
	case "MOVQ", "MOVL", "KMOVD", "VMOVD", "VMOVQ":
		if op == "VMOVD" || op == "KMOVD" {
			size = 4
		}
		m.set(a[1], m.value(a[0], size), size)
	case "LEAQ":
		m.set(a[1], m.address(a[0]), 8)
	case "POPCNTL":
		result(uint64(bits.OnesCount64(m.value(a[0], size))))
	case "ADDQ":
		result(m.value(a[1], size) + m.value(a[0], size))
	case "SUBQ":
		result(m.value(a[1], size) - m.value(a[0], size))
	case "DECQ":
		result(m.value(a[0], size) - 1)
	case "SHLQ", "SHLL":
		result(m.value(a[1], size) << m.value(a[0], size))
	case "MOVW":
		m.set(a[1], m.value(a[0], 2), 2)
	case "SHRQ", "SHRL":
		result(m.value(a[1], size) >> m.value(a[0], size))
	case "ANDQ":
		result(m.value(a[1], size) & m.value(a[0], size))
	case "NOTL":
		m.set(a[0], ^m.value(a[0], size), size)
	case "ORL", "ORQ":
		result(m.value(a[1], size) | m.value(a[0], size))
	case "XORL", "XORQ":
		result(m.value(a[1], size) ^ m.value(a[0], size))
	case "TESTQ":
		m.zero = m.value(a[0], size)&m.value(a[1], size) == 0
	case "CMPQ", "CMPL":
		x, y := m.value(a[0], size), m.value(a[1], size)
		m.zero, m.less = uint32(x) == uint32(y) && (size == 4 || x == y), int64(x) < int64(y)
	case "CMOVQLT":
		if m.less {
			m.set(a[1], m.value(a[0], size), size)
		}
	case "KNOTD":
		m.set(a[1], uint64(^uint32(m.value(a[0], 8))), 8)
	case "KNOTW":
		m.set(a[1], uint64(^uint16(m.value(a[0], 8))), 8)
	case "KUNPCKWD":
		m.set(a[2], m.value(a[1], 8)&0xffff<<16|m.value(a[0], 8)&0xffff, 8)
	case "KUNPCKBW":
		m.set(a[2], m.value(a[1], 8)&0xff<<8|m.value(a[0], 8)&0xff, 8)
	default:
		return false
	}
	return true
}
