"""Builds .lora files from spec/FORMAT.md, wrong ones too. Shares no code with any reader or other writer of the format.

A Model is what a file is to say: a manifest as Python objects and the raw bytes of every tensor and attachment. lora(model)
writes it correctly; every keyword replaces one field or one stretch of bytes, and what is computed later follows the
replaced bytes (digests cover them, sizes count them) unless it is replaced too.
"""
import copy
import hashlib
import json
import struct
from functools import lru_cache
from itertools import groupby

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "I64": 64, "U64": 64, "C64": 64, "F64": 64}
PLANES = ("F16", "BF16", "F32", "F64")

# --- XXH64, seed 0

P1, P2, P3, P4, P5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
M = 2**64 - 1


def rotl(x, n):
    return (x << n | x >> 64 - n) & M


@lru_cache(maxsize=64)
def xxh64(b):
    def turn(acc, lane):
        return rotl(acc + lane * P2 & M, 31) * P1 & M

    whole = len(b) & ~31
    if whole:
        v1, v2, v3, v4 = P1 + P2 & M, P2, 0, -P1 & M
        for a, c, d, e in struct.iter_unpack("<4Q", b[:whole]):
            v1, v2, v3, v4 = turn(v1, a), turn(v2, c), turn(v3, d), turn(v4, e)
        h = rotl(v1, 1) + rotl(v2, 7) + rotl(v3, 12) + rotl(v4, 18) & M
        for v in (v1, v2, v3, v4):
            h = (h ^ turn(0, v)) * P1 + P4 & M
    else:
        h = P5
    h, rest = h + len(b) & M, b[whole:]
    while len(rest) >= 8:
        h, rest = rotl(h ^ turn(0, int.from_bytes(rest[:8], "little")), 27) * P1 + P4 & M, rest[8:]
    if len(rest) >= 4:
        h, rest = rotl(h ^ int.from_bytes(rest[:4], "little") * P1 & M, 23) * P2 + P3 & M, rest[4:]
    for c in rest:
        h = rotl(h ^ c * P5 & M, 11) * P1 & M
    h = (h ^ h >> 33) * P2 & M
    h = (h ^ h >> 29) * P3 & M
    return h ^ h >> 32


# --- zstd blocks and frames, by hand

def block(kind, size, content, last=False):
    return (size << 3 | kind << 1 | bool(last)).to_bytes(3, "little") + content


def raw(b, last=False):
    return block(0, len(b), b, last)


def rle(c, n, last=False):
    return block(1, n, bytes([c]), last)


def compressed(literals, sequences, last=False):
    return block(2, len(literals + sequences), literals + sequences, last)


def raw_literals(b):
    """A raw literals section."""
    if len(b) < 32:
        return bytes([len(b) << 3]) + b
    return struct.pack("<H", len(b) << 4 | 4) + b


def rle_literals(c, n):
    """An RLE literals section of n < 32 literals."""
    return bytes([n << 3 | 1, c])


def huffman_literals(bits, n, weights=b"\x80\x10", kind=2):
    """n literals in one stream of bits, first bit first. The weights make 0 and 1 the literals, of one bit each."""
    v = int("1" + bits, 2)
    body = weights + v.to_bytes((v.bit_length() + 7) // 8, "little")
    return (kind | n << 4 | len(body) << 14).to_bytes(3, "little") + body


def fse_header(log, probabilities):
    """The description of an FSE table: none of the probabilities is 0 or less than 1."""
    bits, remaining = format(log - 5, "04b")[::-1], 2**log
    for p in probabilities:
        width = (remaining + 1).bit_length()
        few = 2**width - 2 - remaining  # the lowest values have one bit less
        v = p + 1
        v, n = (v, width - 1) if v < few else (v, width) if v < 2**(width - 1) else (v + few, width)
        bits += format(v, f"0{n}b")[::-1]
        remaining -= p
    assert remaining == 0
    return int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")


def fse_table(log, probabilities):
    """The cells of an FSE table: symbol, number of bits, base of the next state."""
    size, at = 2**log, 0
    cells, next_state = [0] * size, list(probabilities)
    for symbol, p in enumerate(probabilities):
        for _ in range(p):
            cells[at] = symbol
            at = (at + size // 2 + size // 8 + 3) % size
    for u, symbol in enumerate(cells):
        x = next_state[symbol]
        next_state[symbol] += 1
        n = log + 1 - x.bit_length()
        cells[u] = symbol, n, (x << n) - size
    return cells


def fse_weights(weights, log, probabilities, tail=""):
    """A Huffman tree whose weights, all but the last, are FSE-coded in two states that take turns. tail is what is left
    when an update needs more bits, first bit first: nothing where an encoder wrote it."""
    cells = fse_table(log, probabilities)
    states, updates = [None, None], []
    for i in range(len(weights) - 1, -1, -1):  # backwards, as FSE encodes
        after = states[i % 2]
        fits = [u for u, (symbol, n, base) in enumerate(cells)
                if symbol == weights[i] and (after is None or base <= after < base + 2**n)]
        if after is None:  # the last two: the one that ends the series needs more bits than the tail has
            fits = [u for u in fits if cells[u][1] > len(tail)]
        states[i % 2] = fits[0]
        if after is not None:
            symbol, n, base = cells[fits[0]]
            updates.append(format(after - base, f"0{n}b") if n else "")
    v = int("1" + "".join(format(s, f"0{log}b") for s in states) + "".join(reversed(updates)) + tail, 2)
    body = fse_header(log, probabilities) + v.to_bytes((v.bit_length() + 7) // 8, "little")
    assert len(body) < 128
    return bytes([len(body)]) + body


def sequence(ll, of, ml, bits="", modes=0x54, count=1):
    """A sequences section whose three tables are RLE: codes ll, of, ml for all sequences and the extra bits in reading order."""
    v = int("1" + bits, 2)
    return bytes([count, modes, ll, of, ml]) + v.to_bytes((v.bit_length() + 7) // 8, "little")


def repeated(period, n):
    """Blocks that decode to period, repeated up to n bytes: literals once, then one match a block. 1 <= len(period) < 2^15."""
    out, done = [], min(n, len(period))
    out.append(raw((period * (n // len(period) + 1))[:done], done == n))
    while done < n:
        here = min(n - done, 2**17)
        if here < 16:  # not worth a match
            out.append(raw((period * 17)[done % len(period):][:here], True))
            break
        if here < 65539:  # too short for match code 52
            code = next(c for c in range(51, -1, -1) if ML[c][0] <= here)
            extra = format(here - ML[code][0], f"0{ML[code][1]}b") if ML[code][1] else ""
        else:
            code, extra = 52, format(here - 65539, "016b")
        value = len(period) + 3
        of = value.bit_length() - 1
        out.append(compressed(raw_literals(b""), sequence(0, of, code, (format(value - 2**of, f"0{of}b") if of else "") + extra),
                              done + here == n))
        done += here
    return b"".join(out)


ML = {c: (c + 3, 0) for c in range(32)} | {32: (35, 1), 33: (37, 1), 34: (39, 1), 35: (41, 1), 36: (43, 2), 37: (47, 2),
      38: (51, 3), 39: (59, 3), 40: (67, 4), 41: (83, 4), 42: (99, 5), 43: (131, 7), 44: (259, 8), 45: (515, 9), 46: (1027, 10),
      47: (2051, 11), 48: (4099, 12), 49: (8195, 13), 50: (16387, 14), 51: (32771, 15)}


def blocks_for(b):
    """The plainest blocks that decode to b: RLE where it is one byte over and over, raw otherwise, 128 KiB each."""
    cuts = [b[i:i + 2**17] for i in range(0, len(b), 2**17)] or [b""]
    return b"".join(rle(x[0], len(x), x is cuts[-1]) if len(x) > 4 and x == x[:1] * len(x) else raw(x, x is cuts[-1]) for x in cuts)


def frame(b, blocks=None, magic=b"\x28\xb5\x2f\xfd", width=None, size=None, descriptor=None, window=b"", dictionary=b"",
          checksum=None, tail=b""):
    """A data frame for the decoded bytes b. width is the width of the content size field, size what it says."""
    size = len(b) if size is None else size
    if width is None:
        width = 1 if size < 256 else 2 if size < 256 + 2**16 else 4 if size < 2**32 else 8
    flag = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[width]
    descriptor = flag << 6 | 0x24 if descriptor is None else descriptor
    field = (size - 256 if width == 2 else size).to_bytes(width, "little")
    checksum = struct.pack("<I", xxh64(b) & 0xFFFFFFFF) if checksum is None else checksum
    return magic + bytes([descriptor]) + window + dictionary + field + (blocks_for(b) if blocks is None else blocks) + checksum + tail


def skippable(nibble, content):
    return struct.pack("<II", 0x184D2A50 | nibble, len(content)) + content


def stock(b, level=19):
    """What the zstd library makes of b; it was 1.5.7 when the vectors were made, and they are kept, not made again."""
    import zstandard  # here alone, so that others need the standard library only
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(b)


# --- what a file says

class Model:
    def __init__(self, manifest, parts):
        self.manifest, self.parts = manifest, parts

    def edited(self, change):
        """A copy whose manifest change(manifest) has changed in place."""
        m = copy.deepcopy(self.manifest)
        change(m)
        return Model(m, self.parts)


def noise(label, n):
    """n bytes that depend on nothing but the label."""
    return hashlib.shake_128(label.encode()).digest(n)


def raw_length(record):
    n = BITS[record["dtype"]]
    for d in record["shape"]:
        n *= d
    return n // 8


def tensor(name, dtype="F32", shape=(), data=None, coding=None):
    """A record of the table and its bytes, which come from the name where they are not given."""
    record = {"coding": coding or ("planes" if dtype in PLANES else "raw"), "dtype": dtype, "name": name, "shape": list(shape)}
    return record, noise(name + dtype, raw_length(record)) if data is None else data


def layer(module, roles, rank=1, **more):
    base = {"kind": "linear", "module": module, "rank": rank, "roles": roles, "scaling": "alpha/r"}
    if more.get("scaling") != "fixed":
        base["alpha"] = 2
    return base | more


def adapter(**more):
    return {"base": {"fingerprints": {}, "name": "", "revision": ""}, "beside": [], "dialect": "", "layers": [], "method": "lora",
            "name": "", "orientation": "", "requires": []} | more


def model(adapters, tensors, attachments=(), **more):
    """attachments are (name, bytes) or (name, bytes, sha256)."""
    records = [{"name": a[0], "sha256": a[2] if len(a) > 2 else "", "size": len(a[1])} for a in attachments]
    return Model({"adapters": adapters, "attachments": records, "metadata": {}, "provenance": {"source": "", "tool": "", "version": ""},
                  "tensors": [t[0] for t in tensors]} | more, [t[1] for t in tensors] + [a[1] for a in attachments])


def opaque(*tensors, attachments=(), **more):
    """One adapter that carries the tensors and interprets none."""
    a = adapter(beside=[{"action": "opaque", "tensor": i} for i in range(len(tensors))])
    return model([a], tensors, attachments, **more)


def example():
    """Section 17."""
    return model([adapter(layers=[layer("q", {"A": 0, "B": 1})])],
                 [tensor("q.lora_A.weight", "F32", [1, 2], bytes.fromhex("0000803f000020c0")),
                  tensor("q.lora_B.weight", "F32", [2, 1], bytes.fromhex("0000003f00008040"))],
                 [("README.md", b"hi\n")])


# --- writing

def canonical(v):
    return json.dumps(v, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8", "surrogatepass")


def planes(b, width):
    """Section 9, element by element."""
    n = width * 8
    turned = [(x << 1 | x >> n - 1) & (1 << n) - 1 for x in (int.from_bytes(b[i:i + width], "little") for i in range(0, len(b), width))]
    return bytes(x >> n - 8 * p - 8 & 0xFF for p in range(width) for x in turned)


def raw_chunks(m, log2):
    """Section 8: (dtype, coding, raw bytes) of every chunk."""
    n, runs = len(m.manifest["tensors"]), []
    for (dtype, coding), ts in groupby(range(n), key=lambda i: (m.manifest["tensors"][i]["dtype"], m.manifest["tensors"][i]["coding"])):
        runs.append((dtype, coding, b"".join(m.parts[i] for i in ts)))
    runs.append((None, "raw", b"".join(m.parts[n:])))
    return [(dtype, coding, b[i:i + 2**log2]) for dtype, coding, b in runs for i in range(0, len(b), 2**log2)]


def content_id(m):
    """Section 13."""
    def full(i):
        t = m.manifest["tensors"][i]
        return {"dtype": t["dtype"], "name": t["name"], "sha256": hashlib.sha256(m.parts[i]).hexdigest(), "shape": t["shape"]}

    def only(record, *members):
        return {k: record[k] for k in members if k in record}

    adapters = []
    for a in m.manifest["adapters"]:
        beside = [only(b, "action", "rows", "target") | {"tensor": full(b["tensor"])} for b in a["beside"]]
        layers = [only(x, "alpha", "kind", "module", "rank", "scale", "scaling") | {"roles": {k: full(i) for k, i in x["roles"].items()}}
                  for x in a["layers"]]
        adapters.append({"beside": sorted(beside, key=lambda b: b["tensor"]["name"].encode()), "layers": layers, "method": a["method"],
                         "name": a["name"], "requires": [only(r, "feature", "where") for r in a["requires"]]})
    return hashlib.sha256(canonical({"adapters": adapters, "content": 1})).digest()


def lora(m, text=None, frames=None, before=None, log2=20, magic=b"\x5a\x2a\x4d\x18", signature=b"\x89LRA\r\n\x1a\n", major=1, minor=0,
         critical=0, ignorable=0, reserved=b"\0\0\0", manifest_bytes=None, manifest_frame=None, in_head=b"", head_size=None,
         total=None, head_digest=None, content=None, chunk_digests=None, digests_magic=b"\x5b\x2a\x4d\x18", digests_size=None,
         digests_tail=b"", digests=None, entries=None, seek_magic=b"\x5e\x2a\x4d\x18", seek_size=None, seek_frames=None, descriptor=0,
         seek_tail=b"", end=b"\xb1\xea\x92\x8f", seek=None, stale=None, front=b"", back=b""):
    """The file. Most keywords are fields of the spec's tables; the others:
    text            the manifest's bytes, instead of the canonical text of m.manifest
    manifest_frame  bytes, or a function of the text
    frames          {i: bytes or a function of the coded bytes}, instead of the plain frame of chunk i
    before          {i: bytes} that stand before chunk i; i = c for before the digests, c + 1 for before the seek table
    entries         a function that changes the list of [compressed, decompressed] in place
    stale           a Model: its chunk frames are what the chunk digests are made of
    digests, seek   the whole frame, or a function of the right one
    front, back     bytes around the file
    """
    text = canonical(m.manifest) if text is None else text
    mf = frame(text) if manifest_frame is None else manifest_frame(text) if callable(manifest_frame) else manifest_frame
    mf += in_head
    head = magic + struct.pack("<I", 28 + len(mf) if head_size is None else head_size) + signature
    head += struct.pack("<HHIIB", major, minor, critical, ignorable, log2) + reserved
    head += struct.pack("<I", len(text) if manifest_bytes is None else manifest_bytes) + mf

    def stored(m, frames):
        out = []
        for i, (dtype, coding, b) in enumerate(raw_chunks(m, min(max(log2, 16), 24))):
            coded = b if coding == "raw" else planes(b, BITS[dtype] // 8)
            f = frames.get(i, frame)
            out.append(f(coded) if callable(f) else f)
        return out

    chunks = stored(m, frames or {})
    table = [[len(head), 0]] + [[len(f), len(b)] for f, (_, _, b) in zip(chunks, raw_chunks(m, min(max(log2, 16), 24)))]
    sums = [hashlib.sha256(f).digest() for f in (chunks if stale is None else stored(stale, {}))]
    body = struct.pack("<Q", sum(map(len, m.parts)) if total is None else total)
    body += hashlib.sha256(head).digest() if head_digest is None else head_digest
    body += content_id(m) if content is None else content
    body += b"".join(sums if chunk_digests is None else chunk_digests(sums)) + digests_tail
    d = digests_magic + struct.pack("<I", len(body) if digests_size is None else digests_size) + body
    d = d if digests is None else digests(d) if callable(digests) else digests
    table.append([len(d), 0])
    if entries:
        entries(table)
    s = b"".join(struct.pack("<II", *e) for e in table) + seek_tail
    s += struct.pack("<IB", len(table) if seek_frames is None else seek_frames, descriptor) + end
    s = seek_magic + struct.pack("<I", len(s) if seek_size is None else seek_size) + s
    s = s if seek is None else seek(s) if callable(seek) else seek
    out = head
    for i, part in enumerate(chunks + [d, s]):
        out += (before or {}).get(i, b"") + part
    return front + out + back
