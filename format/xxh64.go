package format

import (
	"encoding/binary"
	"math/bits"
)

const (
	prime64_1 = 0x9E3779B185EBCA87
	prime64_2 = 0xC2B2AE3D27D4EB4F
	prime64_3 = 0x165667B19E3779F9
	prime64_4 = 0x85EBCA77C2B2AE63
	prime64_5 = 0x27D4EB2F165667C5
)

// xxh64 is XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). Its low half is the
// checksum of a zstd frame.
func xxh64(p []byte) uint64 {
	n := uint64(len(p))
	h := uint64(prime64_5)
	if len(p) >= 32 {
		seed := uint64(0)
		a, b, c, d := seed+prime64_1+prime64_2, seed+prime64_2, seed, seed-prime64_1
		for len(p) >= 32 {
			a = xxhRound(a, binary.LittleEndian.Uint64(p))
			b = xxhRound(b, binary.LittleEndian.Uint64(p[8:]))
			c = xxhRound(c, binary.LittleEndian.Uint64(p[16:]))
			d = xxhRound(d, binary.LittleEndian.Uint64(p[24:]))
			p = p[32:]
		}
		h = bits.RotateLeft64(a, 1) + bits.RotateLeft64(b, 7) + bits.RotateLeft64(c, 12) + bits.RotateLeft64(d, 18)
		for _, lane := range [...]uint64{a, b, c, d} {
			h = (h^xxhRound(0, lane))*prime64_1 + prime64_4
		}
	}
	h += n
	for ; len(p) >= 8; p = p[8:] {
		h ^= xxhRound(0, binary.LittleEndian.Uint64(p))
		h = bits.RotateLeft64(h, 27)*prime64_1 + prime64_4
	}
	if len(p) >= 4 {
		h ^= uint64(binary.LittleEndian.Uint32(p)) * prime64_1
		h = bits.RotateLeft64(h, 23)*prime64_2 + prime64_3
		p = p[4:]
	}
	for _, b := range p {
		h ^= uint64(b) * prime64_5
		h = bits.RotateLeft64(h, 11) * prime64_1
	}
	h ^= h >> 33
	h *= prime64_2
	h ^= h >> 29
	h *= prime64_3
	return h ^ h>>32
}

func xxhRound(acc, lane uint64) uint64 {
	return bits.RotateLeft64(acc+lane*prime64_2, 31) * prime64_1
}
