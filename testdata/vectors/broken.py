"""Files that break a rule of sections 3 to 5 and 8 to 11: head, frames, digests, seek table, and the limits on totals."""
import hashlib
import struct

from builder import (Model, adapter, canonical, compressed, content_id, example, frame, fse_weights, huffman_literals, lora, model, opaque,
                     raw, raw_chunks, raw_literals, rle, rle_literals, sequence, skippable, stock, tensor, xxh64)
from kit import bad

# What a reader may see where bytes were put between frames: by position the sizes do not add up or a frame is not where it is
# due, by order of arrival the next frame is none.
BETWEEN = "R2 R66 R10 R12 R58 R63"


def flip(b, i, x=1):
    return b[:i] + bytes([b[i] ^ x]) + b[i + 1:]


def add():
    ex = example()
    file = lora(ex)
    front = 8 + struct.unpack_from("<I", file, 4)[0]
    ends(file, front, ex)
    strangers(file)
    head(ex, file)
    frames(ex)
    blocks()
    derived(ex)
    digests(ex, file)
    seek_table(ex)


def ends(file, front, ex):
    bad("r1-empty", b"", "no bytes", rows="1")
    bad("r1-7-bytes", file[:7], "the first 7 bytes of a valid file", rows="2")
    bad("r1-15-bytes-of-anything", b"not a lora file", "less than 16 bytes are R1, whatever they are")
    for n, what in ((16, "after the signature"), (35, "in the fixed part of the head"), (36, "before the manifest"), (front - 1, "in the manifest"),
                    (front, "after the head"), (front + 10, "in chunk 0"), (front + 29, "after chunk 0"), (front + 45, "after the last chunk"),
                    (front + 45 + 60, "in the digests"), (front + 45 + 144, "after the digests"), (len(file) - 20, "in the seek table"),
                    (len(file) - 1, "before the last byte")):
        bad(f"r1-cut-at-{n}", file[:n], f"the example cut {what}", rows={front + 45: "46", front + 10: "47", len(file) - 20: "48"}.get(n, ""))
    bad("r1-head-beyond-end", lora(ex, manifest_bytes=2**20, manifest_frame=frame(b"", size=2**20), head_size=28 + 2**20),
        "the head says that it is longer than the file", rows="9")
    bad("r2-byte-appended", file + b"\0", "a zero byte after the seek table", rule="R2 R1", rows="53")
    zip_ = b"PK\5\6" + bytes(18)
    bad("r2-zip-appended", file + zip_, "an empty zip archive after the seek table", rule="R2 R1", rows="53")
    bad("r2-pickle-appended", file + b"\x80\x04N.", "a pickle after the seek table", rule="R2 R1", rows="53")
    bad("r2-frame-appended", file + frame(b""), "a zstd frame of nothing after the seek table", rule="R2 R1")
    bad("r2-seek-table-twice", file + lora(ex)[-49:], "the seek table twice: the one at the end is right, but for the length of the file",
        rule="R2 R66 R58 R1")
    bad("r2-file-twice", file + file, "two valid files, one after the other", rule="R2 R66 R1")
    for i, what in enumerate(("before chunk 0", "between the chunks", "between the last chunk and the digests", "before the seek table")):
        bad(f"r2-byte-in-gap-{i}", lora(ex, before={i: b"\0"}), f"a byte {what}, in no size", rule=BETWEEN, rows="54")
        bad(f"r2-skippable-in-gap-{i}", lora(ex, before={i: skippable(0, b"?")}), f"a skippable frame {what}, in no size", rule=BETWEEN, rows="54")
    bad("r2-digests-twice", lora(ex, digests=lambda d: d + d, entries=lambda t: t[-1].__setitem__(0, 144)),
        "the digests twice, the seek table knows of one", rule=BETWEEN, rows="72")
    m = opaque(tensor("x", "U8", [5]))
    f = lora(m)
    d = f.index(b"\x5b\x2a\x4d\x18")
    c = f.index(b"\x28\xb5\x2f\xfd", 100)
    bad("r2-digests-before-chunk", f[:c] + f[d:-41] + f[c:d] + f[-41:], "digests and chunk exchanged", rule=BETWEEN, rows="72")

    def swapped(t):
        t[1], t[2] = t[2], t[1]
    bad("r2-digests-before-chunk-listed", f[:c] + f[d:-41] + f[c:d] + lora(m, entries=swapped)[-41:], "the same in the seek table's order",
        rule=BETWEEN + " R65", rows="72")
    bad("r2-chunk-missing", lora(ex, frames={1: b""}, entries=lambda t: t[2].__setitem__(0, 16)), "the last chunk is not there",
        rule=BETWEEN + " R1")
    bad("r2-chunk-too-many", lora(ex, before={2: frame(b"more")}), "a chunk more than there are raw bytes", rule=BETWEEN)


def strangers(file):
    pointer = (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + hashlib.sha256(b"x").hexdigest().encode() + b"\nsize 1234567\n")
    bad("r3-git-lfs-pointer", pointer, "a git-lfs pointer: the content was not downloaded", rows="3")
    h = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    bad("r3-safetensors", struct.pack("<Q", len(h)) + h + bytes(4), "a safetensors file", rows="4")
    bad("r3-plain-zstd", frame(b"hello, world\n"), "a zstd file", rows="5")
    f = frame(b"hello, world\n")
    seek = struct.pack("<III", len(f), 13, 1) + b"\0\xb1\xea\x92\x8f"
    bad("r3-seekable-zstd", f + skippable(14, seek), "a seekable zstd file", rows="6")
    bad("r3-text-mode-lf", file.replace(b"\r\n", b"\n"), "CR LF became LF", rows="7")
    bad("r3-text-mode-crlf", file.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), "LF became CR LF", rows="7")
    bad("r3-bom", b"\xef\xbb\xbf" + file, "a UTF-8 byte order mark before the file", rows="8")
    bad("r3-utf-16", "not a .lora file".encode("utf-16"), "UTF-16 text", rows="8")
    bad("r3-prefix", b"#!/bin/sh\n" + file, "a line of shell before the file")
    bad("r3-magic", flip(file, 0), "the first byte is 5B: the magic of the digests")
    for i in range(8, 16):
        bad(f"r3-signature-byte-{i}", flip(file, i, 0x80), f"byte {i} with its high bit flipped")


def head(ex, file):
    for v, rows in ((0, "12"), (2, "11"), (0x100, ""), (0xFFFF, "")):
        bad(f"r4-major-{v}", lora(ex, major=v), f"major {v}", rows=rows)
    bad("r4-major-2-and-nothing-else", file[:16] + b"\2\0" + b"\xff" * 40, "a later major may arrange all that follows differently")
    for b in (0, 3, 4, 31):
        # Version 1.1 knows bit 0.
        bad(f"r5-critical-bit-{b}", lora(ex, critical=1 << b), f"critical bit {b}", rows="13", rule=None if b else "R5 R77")
    bad("r5-critical-bits", lora(ex, critical=0xFFFFFF80), "bit 7 is the lowest that is set", rows="13")
    for n in (0, 15, 25, 255):
        bad(f"r6-chunk-log2-{n}", lora(ex, log2=n), f"chunk_log2 {n}", rows="16")
    for i in range(3):
        bad(f"r7-reserved-byte-{i}", lora(ex, reserved=bytes(i) + b"\1" + bytes(2 - i)), f"reserved byte {29 + i} is 1", rows="15")
    text = canonical(ex.manifest)
    bad("r8-size-27", lora(ex, head_size=27), "less than the fixed part")
    bad("r8-size-0", lora(ex, head_size=0), "size 0")
    bad("r8-size-max", lora(ex, head_size=2**32 - 1), "size 2^32 - 1", rule="R8 R1", rows="10")
    room = len(text) + len(text) // 128 + 64
    pad = (room + 1 - len(frame(text)) + 2) // 3
    f = frame(text, raw(b"") * pad + raw(text, True))
    bad("r8-manifest-over-bound", lora(ex, manifest_frame=f), f"{pad} empty blocks make the manifest frame {len(f) - room} longer than bound")
    for n, name in ((2**26 + 1, "2-26-plus-1"), (2**32 - 1, "2-32-minus-1")):
        bad(f"r9-manifest-bytes-{name}", lora(ex, manifest_bytes=n, manifest_frame=frame(text, raw(text, True), width=4, size=n)),
            f"manifest_bytes {n} before a small frame that says so too", options=f"manifest={2**26}", rows="17")
    bombs = rle(32, 2**21 - 1) * 2**9
    n = 2**30
    bad("r9-manifest-bomb", lora(ex, manifest_bytes=n, manifest_frame=frame(b"", bombs, width=4, size=n, checksum=bytes(4))),
        "RLE blocks of 2 MiB, 1 GiB together", options=f"manifest={2**26}", rows="19")


def one(b, blocks, **more):
    """A file with one chunk that should decode to b."""
    return lora(opaque(tensor("x", "U8", [len(b)], b)), frames={0: lambda c: frame(c, blocks, **more)})


def frames(ex):
    """R10 to R17, where the blocks themselves are right; for the manifest (open) and for chunks (read)."""
    def mani(name, f, comment, **more):
        bad(name.replace("-", "-manifest-", 1), lora(ex, manifest_frame=f), comment + ", in the manifest", **more)

    def chunk(name, f, comment, **more):
        bad(name.replace("-", "-chunk-", 1), lora(ex, frames={0: f}), comment + ", in chunk 0", stage="read", **more)

    magics = (("zero", bytes(4), "zeros for the magic number"),
            ("skippable", b"\x50\x2a\x4d\x18", "the magic of a skippable frame"),
              ("v07", b"\x27\xb5\x2f\xfd", "the magic of zstd 0.7, which old decoders accept"))
    for put in (mani, chunk):
        for name, m, comment in magics:
            put("r10-" + name, lambda c, m=m: frame(c, magic=m), comment)
        put("r10-magicless", lambda c: frame(c)[4:], "the frame without its magic number")
        for name, bit, comment, rows in (("unused-bit", 0x10, "the unused bit of the descriptor", "60"),
                                         ("reserved-bit", 0x08, "the reserved bit of the descriptor", "60")):
            put("r11-" + name, lambda c, bit=bit: flip(frame(c), 4, bit), comment, rows=rows)
        put("r11-no-checksum", lambda c: flip(frame(c, checksum=b""), 4, 4), "no checksum")
        put("r11-no-checksum-flag", lambda c: flip(frame(c), 4, 4), "a checksum, but not its flag")
        for n in (1, 2, 3):
            put(f"r11-dictionary-{n}", lambda c, n=n: frame(c, descriptor=frame(c)[4] | n, dictionary=bytes(2**n // 2 - 1) + b"\1"),
                f"a dictionary id of {2**n // 2} bytes", rows="58")
        put("r11-dictionary-zero", lambda c: frame(c, descriptor=frame(c)[4] | 1, dictionary=b"\0"), "dictionary id 0, which means none", rows="58")
        put("r11-window", lambda c: frame(c, descriptor=0x84, window=b"\x50", width=4), "a window instead of a single segment", rows="59")
        put("r11-no-content-size", lambda c: frame(c, descriptor=0x04, window=b"\x50")[:6] + frame(c)[6 if len(c) < 256 else 7:],
            "no content size", rows="59")
        put("r11-window-512m", lambda c: frame(c, descriptor=0x04, window=b"\x98")[:6] + frame(c)[6 if len(c) < 256 else 7:],
            "no content size and a window of 512 MiB", rows="59")
        put("r12-less", lambda c: frame(c, size=len(c) - 1), "a content size one too small", rows="18")
        put("r12-more", lambda c: frame(c, size=len(c) + 1), "a content size one too large", rows="18")
        put("r12-high-bits", lambda c: frame(c, width=8, size=len(c) + 2**32), "a content size 2^32 too large", rows="18")
        put("r12-top-bit", lambda c: frame(c, width=8, size=len(c) + 2**63), "a content size 2^63 too large", rows="18")
        put("r12-1-gib", lambda c: frame(c, rle(0, 2**17) * 9, width=4, size=2**30), "a content size of 1 GiB", rows="18")
        put("r12-zero", lambda c: frame(b"", raw(b"", True)), "an empty frame", rows="57")
        put("r17-checksum-flipped", lambda c: frame(c)[:-1] + bytes([frame(c)[-1] ^ 0x80]),
            "the last bit of the checksum flipped", rows="66")
        put("r17-checksum-zero", lambda c: frame(c, checksum=bytes(4)), "zeros for the checksum", rows="66")
        put("r17-checksum-high-half", lambda c: frame(c, checksum=struct.pack(">I", xxh64(c) & 0xFFFFFFFF)), "the checksum big-endian", rows="66")
    chunk("r17-data-flipped", lambda c: flip(frame(c), 12), "a bit of a raw block flipped", rows="66")
    bad("r17-manifest-data-flipped", lora(ex, manifest_frame=lambda c: frame(c).replace(b"README", b"READMY")),
        "a letter of the manifest changed")
    m = opaque(tensor("x", "F32", [3]), tensor("y", "F32", [1], coding="raw"), attachments=[("a", b"bytes")])
    for i, what in ((1, "the second run"), (2, "the attachments")):
        bad(f"r17-checksum-flipped-in-chunk-{i}", lora(m, frames={i: lambda c: frame(c)[:-1] + bytes([frame(c)[-1] ^ 1])}),
            f"the checksum of {what}", stage="read")
    bad("r10-chunk-empty", lora(ex, frames={0: b""}), "a chunk of no stored bytes, and the seek table says so", stage="read", rule="R10 R2 R12",
        rows="57")
    # Frames of wrong length, with a seek table that covers them. In the order of arrival the bytes too many are not in the frame.
    over = "R15 R2 R10 R12 R58 R66"
    text = canonical(ex.manifest)
    bad("r15-manifest-byte-after-frame", lora(ex, in_head=b"\0"), "a byte between manifest frame and end of head", rows="20")
    bad("r15-manifest-two-frames", lora(ex, manifest_frame=lambda c: frame(c) + frame(b"")), "an empty frame after the manifest's", rows="20 55")
    bad("r15-manifest-skippable", lora(ex, in_head=skippable(3, b"")), "a skippable frame after the manifest's", rows="20")
    bad("r15-manifest-cut", lora(ex, manifest_frame=lambda c: frame(c)[:-1]), "a checksum of three bytes", rule="R15 R17 R13")
    bad("r15-manifest-no-checksum", lora(ex, manifest_frame=lambda c: frame(c, checksum=b"")), "no checksum, though it is announced",
        rule="R15 R17 R13")
    bad("r15-manifest-block-beyond", lora(ex, manifest_frame=frame(text)[:-40]), "the block is longer than the head", rule="R15 R13 R14")
    for name, tail, comment, rows in (("byte-after-frame", b"\0", "a byte after the checksum", ""),
                                      ("empty-frame-after", frame(b""), "an empty frame after the chunk's", "56"),
                                      ("skippable-after", skippable(0, b""), "a skippable frame after the chunk's", "56"),
                                      ("checksum-twice", frame(b"")[-4:], "four bytes after the checksum", "")):
        bad("r15-chunk-" + name, lora(ex, frames={0: lambda c: frame(c, tail=tail)}), comment, stage="read", rule=over, rows=rows)
    bad("r15-chunk-cut", lora(ex, frames={0: lambda c: frame(c)[:-1]}), "a checksum of three bytes", stage="read",
        rule="R15 R17 R13 R10 R2 R66")
    bad("r15-chunk-no-checksum", lora(ex, frames={0: lambda c: frame(c, checksum=b"")}), "no checksum, though it is announced", stage="read",
        rule="R15 R17 R13 R10 R2 R66")
    bad("r15-chunk-beyond", lora(ex, frames={1: lambda c: frame(c, raw(c + b"?", True)[:3] + c)}), "a raw block of 4 bytes where 3 are left", stage="read",
        rule="R13 R14 R15 R17 R2 R58 R66")
    bad("r12-chunk-two-frames", lora(ex, frames={0: lambda c: frame(c[:8]) + frame(c[8:])}), "a chunk of two frames, half of it each", stage="read",
        rule="R12 R15", rows="55")
    bad("r16-chunk-over-bound", lora(ex, frames={0: lambda c: frame(c, raw(b"") * 18 + raw(c, True))}),
        "18 empty blocks: 83 bytes stored for 16, bound(16) is 80", stage="read", rows="63")
    bad("r16-chunk-empty-blocks", lora(ex, frames={0: lambda c: frame(c, raw(b"") * 1000 + raw(c, True))}), "1,000 empty blocks", stage="read", rows="63")


def blocks():
    z = bytes(200)

    def put(name, blocks, comment, b=z, rows="64", rule=None, checksum=None, decodes_to=None):
        if decodes_to is not None:
            checksum = frame(decodes_to)[-4:]
        bad(name, one(b, blocks, checksum=checksum), comment, stage="read", rule=rule, rows=rows)

    put("r13-block-type-3", raw(z[:100]) + (100 << 3 | 7).to_bytes(3, "little") + z[:100], "a block of the reserved type", rows="62")
    put("r13-rle-over-128k", rle(0, 2**17 + 1) + rle(0, 2**16, True), "an RLE block of 128 KiB and a byte", bytes(2**17 + 2**16 + 1), "62")
    put("r13-rle-over-content", rle(0, 2**21 - 1, True), "an RLE block of 2 MiB where 200 bytes are due", rows="62", rule="R13 R14")
    put("r13-raw-over-128k", raw(bytes(2**17 + 1), True), "a raw block of 128 KiB and a byte", bytes(2**17 + 1), "62")
    many = format(100000 - 65539, "016b")
    put("r13-compressed-over-128k", compressed(raw_literals(bytes(2)), sequence(1, 0, 52, many * 2, count=2), True),
        "a compressed block that decodes to 200,002 bytes", bytes(200002), "62")
    put("r13-compressed-over-content", compressed(raw_literals(b"\0"), sequence(1, 0, 43, "1111111"), True), "a match that goes past the content size",
        rule="R13 R14")
    put("r13-compressed-stored-over-content", compressed(raw_literals(bytes(26)), b"\0", True), "a compressed block longer than the content size",
        bytes(26), rule="R13")
    put("r13-compressed-of-one-byte", compressed(b"\0", b"", False) + rle(0, 200, True), "a compressed block without sequences section")
    put("r13-compressed-of-no-bytes", compressed(b"", b"", False) + rle(0, 200, True), "a compressed block of no bytes")
    put("r13-literals-past-block", compressed(b"\x88" + bytes(5), b"", False) + rle(0, 183, True), "17 raw literals in a block of 6 bytes")
    put("r13-literals-over-128k", compressed(((2**20 - 1) << 4 | 13).to_bytes(3, "little") + b"\0", b"\0", True), "RLE literals of 2^20 - 1 bytes",
        rule="R13 R14")
    bits = "01" * 50
    put("r13-treeless-first", compressed(huffman_literals(bits, 100, b"", 3), b"\0") + rle(0, 100, True), "a treeless block with no table before it")
    put("r13-huffman-no-weights", compressed(huffman_literals(bits, 100, b"\x80\x00"), b"\0") + rle(0, 100, True), "all Huffman weights are zero")
    put("r13-huffman-weight-15", compressed(huffman_literals(bits, 100, b"\x81\xf1"), b"\0") + rle(0, 100, True), "a Huffman weight of 15")
    put("r13-huffman-weights-cut", compressed(huffman_literals("", 100, b"\xff"), b"\0") + rle(0, 100, True), "128 weights in two bytes")
    put("r13-huffman-table-empty", compressed(huffman_literals(bits, 100, b"\x00"), b"\0") + rle(0, 100, True), "weights compressed to no bytes")
    put("r13-huffman-incomplete", compressed(huffman_literals(bits, 100, b"\x82\x31\x10"), b"\0") + rle(0, 100, True),
        "weights that leave no power of two for the last")
    v = huffman_literals(bits, 100)
    put("r13-huffman-no-end-mark", compressed(v[:-1] + b"\0", b"\0") + rle(0, 100, True), "the last byte of the Huffman stream is zero")
    put("r13-huffman-bits-left", compressed(huffman_literals(bits + "0" * 16, 100), b"\0") + rle(0, 100, True), "16 bits too many in the Huffman stream")
    put("r13-huffman-bits-missing", compressed(huffman_literals(bits[:60], 100), b"\0") + rle(0, 100, True), "60 of 100 literals in the Huffman stream")
    weights = [1, 1, 1, 1, 2, 2, 3]
    for name, tree, comment in (
            ("accuracy-7", fse_weights(weights, 7, [8, 64, 32, 24]), "the FSE table of Huffman weights has accuracy 7"),
            ("256", fse_weights([0] * 254 + [1, 1], 6, [61, 3]), "256 Huffman weights under an FSE code, and so 257 literals"),
            ("state-missing", b"\x04" + fse_weights(weights, 5, [2, 16, 8, 6])[1:4] + b"\x7f", "the FSE-coded Huffman weights end within the second state"),
            ("no-end-mark", fse_weights(weights, 5, [2, 16, 8, 6])[:-1] + b"\0", "the last byte of the FSE-coded Huffman weights is zero")):
        put(f"r13-weights-{name}", compressed(huffman_literals("0" * 100, 25, tree), b"\0") + rle(0, 175, True), comment)
    lit = raw_literals(b"\0\1")
    rest = rle(0, 188, True)
    put("r13-offset-beyond-start", compressed(lit, sequence(2, 3, 7, "101")) + rest, "an offset of 10 with 2 bytes decoded")
    put("r13-offset-zero", compressed(raw_literals(b"\0") , sequence(0, 1, 7, "1")) + rle(0, 189, True), "repeat offset 1 less 1 is 0")
    put("r13-offset-code-32", compressed(lit, sequence(2, 32, 7, "0" * 32)) + rest, "offset code 32, RLE")
    put("r13-literal-length-code-36", compressed(lit, sequence(36, 0, 7, "")) + rest, "literal length code 36, RLE")
    put("r13-match-length-code-53", compressed(lit, sequence(2, 0, 53, "")) + rest, "match length code 53, RLE")
    put("r13-literals-missing", compressed(lit, sequence(3, 0, 7)) + rest, "a sequence that takes 3 literals of 2")
    put("r13-sequence-modes-reserved", compressed(lit, sequence(2, 0, 7, modes=0x55)) + rest, "the reserved bits of the compression modes")
    put("r13-sequence-no-end-mark", compressed(lit, sequence(2, 0, 7)[:-1] + b"\0") + rest, "the last byte of the sequence bits is zero")
    put("r13-sequence-bits-left", compressed(lit, sequence(2, 0, 7, "0" * 40)) + rest, "40 bits too many in the sequence bits")
    put("r13-sequence-bits-missing", compressed(lit, sequence(2, 0, 43, "")) + rest, "the extra bits of a match length are not there")
    put("r13-sequence-count-cut", compressed(lit, b"\x80") + rest, "a sequence count of two bytes of which one is there")
    put("r13-sequence-nothing-after-count", compressed(lit, b"\1") + rest, "one sequence and no modes")
    put("r13-no-sequences-but-bytes", compressed(lit, b"\0\0\0") + rle(0, 198, True), "two bytes after a sequence count of zero")
    put("r13-repeat-mode-first", compressed(lit, bytes([1, 0xFC, 1])) + rest, "tables repeated where there are none")
    put("r13-fse-accuracy", compressed(lit, bytes([1, 0x80, 0x0F]) + bytes(8)) + rest, "an FSE table of accuracy 20")
    put("r13-fse-cut", compressed(lit, bytes([1, 0x80, 0x00])) + rest, "an FSE table that ends early")

    put("r14-less", raw(z[:100], True), "100 bytes and the last block, 200 are due", rows="61 65", decodes_to=bytes(100))
    put("r14-last-set-early", raw(z[:100], True) + raw(z[:100], True), "the first of two blocks is marked last", rows="65", rule="R14 R15", decodes_to=bytes(100))
    put("r14-more", raw(z[:150]) + raw(z[:51], True), "201 bytes where 200 are due", rows="61", decodes_to=bytes(201))
    put("r14-rle-bomb", rle(0, 200) * 20 + rle(0, 200, True), "21 times the content size, in RLE blocks", rows="61", decodes_to=bytes(4200))
    put("r14-compressed-less", compressed(rle_literals(0, 30), b"\0") + raw(b"", True), "30 bytes decoded of 200", rows="61", decodes_to=bytes(30))
    put("r14-compressed-more", rle(0, 180) + compressed(rle_literals(0, 30), b"\0", True), "210 bytes decoded of 200", rows="61", decodes_to=bytes(210))
    put("r14-no-last-block", raw(z), "no block is marked last", rows="65", rule="R14 R13 R15 R17", checksum=b"\0\0\0\0")
    put("r14-no-block", b"", "no block at all", rule="R14 R13 R15 R17", rows="65", checksum=b"\1\0\0\0")
    text = canonical(example().manifest)
    n = len(text)
    for name, b, rule, comment in (("more", raw(text) + raw(b" ", True), "R14", "a space more than manifest_bytes"),
                                   ("less", raw(text[:-1], True), "R14", "a byte less than manifest_bytes"),
                                   ("bomb", raw(text) + rle(32, n) * 12 + raw(b"", True), "R14", "13 times manifest_bytes, in RLE blocks")):
        decodes_to = {"more": text + b" ", "less": text[:-1], "bomb": text + b" " * 12 * n}[name]
        bad("r14-manifest-" + name, lora(example(), manifest_frame=frame(text, b, checksum=frame(decodes_to)[-4:])), comment, rule=rule, rows="61" + " 19" * (name == "bomb"))
    bad("r13-manifest-block-type-3", lora(example(), manifest_frame=frame(text, raw(text[:9]) + b"\7\0\0" + raw(text[9:], True))),
        "a block of the reserved type and no length", rows="62")
    bad("r13-manifest-rle-bomb", lora(example(), manifest_frame=frame(text, rle(32, 2**21 - 1) * 20 + rle(32, 2**21 - 1, True))),
        "RLE blocks of 2 MiB", rule="R13 R14", rows="19")


def claim(tensors, attachments=(), log2=20, minor=0):
    """A head that claims the tensors, without their bytes; digests and seek table are those of a file without chunks."""
    a = adapter(beside=[{"action": "opaque", "tensor": i} for i in range(len(tensors))])
    ts = [{"coding": "raw", "dtype": d, "name": f"t{i}", "shape": s} for i, (d, s) in enumerate(tensors)]
    xs = [{"name": f"a{i}", "sha256": "", "size": n} for i, n in enumerate(attachments)]
    m = model([adapter()], [])
    text = canonical(m.manifest | {"adapters": [a], "tensors": ts, "attachments": xs})
    return lora(m, text=text, log2=log2, manifest_frame=stock if len(text) > 4096 else None)


def derived(ex):
    top = f"total={2**48}"
    bad("r56-over-default", claim([("U8", [2**36 + 1])]), "a byte more than the default limit, 2^36")
    bad("r56-sum-over-default", claim([("BF16", [2**34]), ("F32", [2**33]),
            ("U8", [1])]), "three tensors that are a byte more than 2^36 together")
    bad("r56-zeros-of-600-gib", claim([("F32", [2**28])] * 600), "600 tensors of 1 GiB", rows="44")
    bad("r56-attachment-over-default", claim([], [2**36 + 1]), "an attachment of a byte more than 2^36")
    bad("r56-2-48-plus-1", claim([("U8", [2**48]), ("U8", [1])]), "a byte more than the spec allows", options=top)
    bad("r56-elements-of-64-bits", claim([("F64", [2**48])]), "2^48 elements of 8 bytes", options=top)
    bad("r56-attachment-2-53-minus-1", claim([], [2**53 - 1]), "the largest size that a number can say", options=top, rows="43")
    bad("r56-sum-wraps", claim([("F64", [2**24, 2**24])] * 2**12 + [("F64", [2**24, 2**24])] * 2**12 + [("U8", [5])]),
        "8,192 tensors of 2^51 bytes are 2^64, and five bytes", options=top, rows="42 43")
    bad("r57-chunks", claim([("U8", [2**40 + 1])], log2=16), "2^24 + 1 chunks of 64 KiB", options=top)
    bad("r57-chunks-of-runs", claim([("U8", [2**39 + 1]), ("I8", [2**39])], log2=16), "the same in two runs", options=top)
    bad("r57-chunks-with-attachment", claim([("U8", [2**40])], [1], log2=16), "2^24 chunks of tensors and one of attachments", options=top)


def digests(ex, file):
    m = model(ex.manifest["adapters"], list(zip(ex.manifest["tensors"], ex.parts)), [("a", b"1", "0" * 64), ("b", b"2")])
    bad("r55-attachment", lora(m), "the sha256 of an attachment is not that of its bytes", stage="stream")
    h = hashlib.sha256(b"hi\n").hexdigest()
    m = model(ex.manifest["adapters"], list(zip(ex.manifest["tensors"], ex.parts)), [("README.md", b"ho\n", h)])
    bad("r55-attachment-edited", lora(m), "the model card was changed after its sha256 was taken", stage="stream")
    bad("r58-magic", lora(ex, digests_magic=b"\x5c\x2a\x4d\x18"), "the magic number of another skippable frame")
    bad("r58-magic-zstd", lora(ex, digests_magic=b"\x28\xb5\x2f\xfd"), "the magic number of zstd", rule="R58 R2")
    bad("r58-size-less", lora(ex, digests_size=135), "size one too small", rule="R58 R63")
    bad("r58-size-more", lora(ex, digests_size=137), "size one too large", rule="R58 R63")
    bad("r58-size-max", lora(ex, digests_size=2**32 - 1), "size 2^32 - 1", rule="R58 R1")
    bad("r58-one-digest-more", lora(ex, digests_tail=bytes(32)), "a digest of no chunk", rule="R58 R66 R2", rows="71")
    bad("r58-one-digest-less", lora(ex, chunk_digests=lambda d: d[:-1]), "the last chunk has no digest", rule="R58 R66 R2 R1", rows="71")
    bad("r58-byte-more", lora(ex, digests_tail=b"\0"), "a byte after the last digest", rule="R58 R66 R2", rows="71")
    bad("r58-no-digests", lora(ex, digests=b"", entries=lambda t: t[-1].__setitem__(0, 144)), "no digests frame", rule="R58 R1 R2 R66", rows="71")
    for name, n in (("less", 18), ("more", 20), ("zero", 0), ("coded", 19 + 2**32), ("max", 2**64 - 1)):
        bad(f"r59-total-{name}", lora(ex, total=n), f"total {n}, 19 is right")
    bad("r60-flipped", lora(ex, head_digest=hashlib.sha256(b"").digest()), "the head digest is that of no bytes", rows="69")
    edited = lora(ex, text=canonical(ex.manifest | {"metadata": {"a": "b"}}), head_digest=hashlib.sha256(file[:front_of(file)]).digest())
    bad("r60-head-edited", edited, "metadata put into the head afterwards", rows="69")
    bad("r60-ignorable-set", lora(ex, ignorable=1, head_digest=hashlib.sha256(file[:front_of(file)]).digest()),
        "an ignorable bit set afterwards", rows="69")
    bad("r60-without-magic", lora(ex, head_digest=hashlib.sha256(file[8:front_of(file)]).digest()), "the head digest leaves out magic and size")
    bad("r61-flipped", lora(ex, chunk_digests=lambda d: [flip(d[0], 31)] + d[1:]), "a bit of the digest of chunk 0", stage="stream")
    bad("r61-last-flipped", lora(ex, chunk_digests=lambda d: d[:-1] + [flip(d[-1], 0, 0x80)]), "a bit of the digest of the last chunk", stage="stream")
    bad("r61-exchanged", lora(ex, chunk_digests=lambda d: d[::-1]), "the digests of two chunks exchanged", stage="stream")
    bad("r61-of-coded-bytes", lora(ex, chunk_digests=lambda d: [hashlib.sha256(c[2]).digest() for c in raw_chunks(ex, 20)]),
        "digests of raw instead of stored bytes", stage="stream")
    changed = Model(ex.manifest, [flip(ex.parts[0], 3)] + ex.parts[1:])
    bad("r61-chunk-changed", lora(changed, stale=ex), "a chunk changed with its checksum; the content id is that of the new bytes", stage="stream",
        rows="67")
    bad("r61-chunk-and-content-stale", lora(changed, stale=ex, content=content_id(ex)), "a chunk changed with its checksum and nothing else",
        stage="stream", rule="R61 R62", rows="67")
    twins = opaque(tensor("x", "U8", [16]), tensor("y", "I8", [16]))
    swapped = Model(twins.manifest, twins.parts[::-1])
    bad("r61-chunks-exchanged", lora(swapped, stale=twins, content=content_id(twins)), "two chunks of equal length exchanged", stage="stream",
        rule="R61 R62", rows="68")
    same = lora(ex, frames={0: lambda c: frame(c, raw(c[:8]) + raw(c[8:], True))}, stale=ex)
    bad("r61-recompressed", same, "other blocks for the same bytes, the digest is that of the old ones", stage="stream")
    bad("r62-flipped", lora(ex, content=flip(content_id(ex), 5)), "a bit of the content id", stage="stream", rows="70")
    bad("r62-zero", lora(ex, content=bytes(32)), "zeros for the content id", stage="stream", rows="70")
    bad("r62-stale", lora(changed, content=content_id(ex)), "a weight changed, all digests but the content id made again", stage="stream", rows="70")
    other = ex.edited(lambda v: v["adapters"][0]["layers"][0].update(alpha=3))
    bad("r62-alpha-changed", lora(other, content=content_id(ex)), "alpha changed, all digests but the content id made again", stage="stream", rows="70")
    bad("r62-reordered", lora(model([adapter(beside=[{"action": "opaque", "tensor": 0}, {"action": "opaque", "tensor": 1}])],
                                    [tensor("b", "U8", [1]), tensor("a", "U8", [1])]), content=wrong_order()),
        "`beside` in the content document in the order of the manifest instead of names", stage="stream")


def wrong_order():
    ts = [tensor("b", "U8", [1]), tensor("a", "U8", [1])]
    beside = [{"action": "opaque", "tensor": {"dtype": "U8", "name": r["name"], "sha256": hashlib.sha256(b).hexdigest(), "shape": [1]}}
              for r, b in ts]
    return hashlib.sha256(canonical({"adapters": [{"beside": beside, "layers": [], "method": "lora", "name": "", "requires": []}],
                                     "content": 1})).digest()


def front_of(file):
    return 8 + struct.unpack_from("<I", file, 4)[0]


def seek_table(ex):
    bad("r63-magic", lora(ex, seek_magic=b"\x5d\x2a\x4d\x18"), "the magic number of another skippable frame", rule="R63 R1")
    bad("r63-end-magic", lora(ex, end=b"\xb1\xea\x92\x8e"), "the last byte is 8E", rule="R63 R1")
    bad("r63-size-less", lora(ex, seek_size=40), "size one too small", rule="R63 R2")
    bad("r63-size-more", lora(ex, seek_size=42), "size one too large", rule="R63 R1")
    for n in (0, 2, 3, 5, 6, 2**32 - 1):
        bad(f"r63-frames-{n}", lora(ex, seek_frames=n), f"number of frames {n}, 4 is right", rows="49")
    bad("r63-entry-more", lora(ex, entries=lambda t: t.append([0, 0])), "an entry for a frame of no bytes", rule="R63 R66 R58 R2", rows="49")
    bad("r63-entry-less", lora(ex, entries=lambda t: t.pop(2)), "no entry for the last chunk", rule="R63 R66 R58 R2 R1", rows="49")
    bad("r63-bytes-after-entries", lora(ex, seek_tail=bytes(8)), "eight bytes between entries and number of frames", rule="R63 R66 R58 R2", rows="49")
    bad("r63-checksums", lora(ex, seek=lambda s: seek_with_checksums(s)), "a seek table with checksums, its flag set", rule="R63 R64 R66 R58 R2",
        rows="52")
    for b in (0x80, 0x40, 0x04, 0x01):
        bad(f"r64-descriptor-{b:02x}", lora(ex, descriptor=b), f"bit {b.bit_length() - 1} of the descriptor", rows="52")

    def put(i, j, n):
        return lambda t: t[i].__setitem__(j, n)
    bad("r65-chunk-more", lora(ex, entries=put(1, 1, 17)), "a decompressed size one too large", rows="51")
    bad("r65-chunk-less", lora(ex, entries=put(2, 1, 2)), "a decompressed size one too small", rows="51")
    bad("r65-head", lora(ex, entries=put(0, 1, 1)), "decompressed size 1 for the head", rows="51")
    bad("r65-head-manifest", lora(ex, entries=put(0, 1, 532)), "the head's decompressed size is that of the manifest", rows="51")
    bad("r65-digests", lora(ex, entries=put(3, 1, 144)), "decompressed size 144 for the digests", rows="51")

    def exchange(j):
        def f(t):
            t[1][j], t[2][j] = t[2][j], t[1][j]
        return f
    bad("r65-exchanged", lora(ex, entries=exchange(1)), "the decompressed sizes of two chunks exchanged", rows="51")
    bad("r66-chunk-more", lora(ex, entries=put(1, 0, 30)), "a compressed size one too large", rows="50")
    bad("r66-chunk-less", lora(ex, entries=put(2, 0, 15)), "a compressed size one too small", rows="50")
    bad("r66-zero", lora(ex, entries=put(1, 0, 0)), "a compressed size of zero", rows="50")
    bad("r66-max", lora(ex, entries=put(1, 0, 2**32 - 1)), "a compressed size of 2^32 - 1", rule="R66 R16", rows="50")
    bad("r66-head", lora(ex, entries=put(0, 0, 36)), "the head's compressed size is wrong", rows="50")
    bad("r66-digests", lora(ex, entries=put(3, 0, 145)), "the compressed size of the digests is wrong", rows="50")
    bad("r66-exchanged", lora(ex, entries=exchange(0)), "the compressed sizes of two chunks exchanged; they add up", stage="read",
        rule="R66 R10 R13 R14 R15 R17 R61")

    def shift(i, j, n=1):
        def f(t):
            t[i][0] += n
            t[j][0] -= n
        return f
    bad("r66-head-and-chunk", lora(ex, entries=shift(0, 1)), "the head one longer, chunk 0 one shorter; they add up")
    bad("r66-chunk-and-digests", lora(ex, entries=shift(2, 3)), "the last chunk one longer, the digests one shorter; they add up")
    bad("r66-boundary-moved", lora(ex, entries=shift(1, 2)), "chunk 0 one longer, chunk 1 one shorter; they add up", stage="read",
        rule="R66 R15 R10 R61")

    def wraps(t):
        t[1][0] += 2**31
        t[2][0] += 2**31
    bad("r66-sum-wraps", lora(ex, entries=wraps), "sizes that add up modulo 2^32 only", rule="R66 R16", rows="50")


def seek_with_checksums(s):
    body = b"".join(s[8 + 8 * i:16 + 8 * i] + bytes(4) for i in range(4)) + s[-9:-5] + b"\x80" + s[-4:]
    return s[:4] + struct.pack("<I", len(body)) + body
