"""Valid records."""
import json

import builder
import merges
from kit_undo import ok, put
from record import record


def escaped(blocks):
    """Residuals as escapes, whatever their size; after the zeros of the first element there is a mark for one of them."""
    for b in blocks:
        n = len(b.marks)
        b.marks = [160 + m % 80 for m in b.marks]
        b.sizes, b.escapes = [255] * n, [x for z in b.zs if z for x in z.to_bytes(b.bits // 8, "little")]


def planar(blocks):
    for b in blocks:
        b.planar()


def add():
    m = merges.values()
    at = put(m)
    ok("values", m, record(m), "every dtype of floats at the edges of rounding, two adapters, tensors of all widths", at)
    ok("planar", m, record(m, blocks={i: planar for i in range(len(m.changed))}), "the same, every block planar", at)
    ok("file-renamed", m, record(m, edit=lambda d: d["files"][0].update(name="of another name")), "one file each: names do not matter", at)

    ok("version-2-values", m, record(m, 2), "the same in version 2", at)
    ok("version-2-planar", m, record(m, 2, blocks={i: planar for i in range(len(m.changed))}), "the same in version 2, every block planar", at)

    ok("terms-reversed", m, record(m, edit=lambda d: d["tensors"][4]["terms"].reverse()),
       "a sum does not depend on the order of its terms", at)

    m = merges.small()
    at = put(m)
    ok("small", m, record(m), "the record that the broken ones are made of", at)
    ok("version-2-small", m, record(m, 2), "the record that the broken ones of version 2 are made of", at)
    m.changed.reverse()
    ok("tensors-reversed", m, record(m), "tensors of the description in another order than that of the file", at)
    m.changed.reverse()
    ok("space", m, record(m, text=lambda b: b" \n" + json.dumps(json.loads(b), indent=1).encode() + b"\n\t "), "undo.json with white space", at)
    ok("members-reversed", m, record(m, text=lambda b: json.dumps(backwards(json.loads(b))).encode()), "members in the other order", at)
    ok("number-forms", m, record(m, text=lambda b: b.replace(b'"scale":1', b'"scale":10.00e-1').replace(b'"weight":1.0', b'"weight":0.1E+1')),
       "numbers with fraction and exponent", at)
    ok("escapes-of-small", m, record(m, blocks={0: escaped}), "residuals of 1, 2 and 3 as escapes", at)
    ok("escaped-text", m, record(m, text=lambda b: b.replace(b'"q.weight"', b'"\\u0071.\\u0077eight"')), "a name with escapes", at)
    ok("metadata", m, record(m, manifest=lambda v: v.update(metadata={"a": "b"}) or v["provenance"].update(tool="x")), "metadata, a tool", at)
    ok("minor-7", m, record(m, minor=7, ignorable=5), "a later minor version of FORMAT.md", at)
    ok("chunks-of-64-kib", m, record(m, log2=16), "smaller chunks", at)
    ok("frames-raw", m, record(m, frames={}, manifest_frame=builder.frame), "nothing compressed", at)
    ok("block-longer-than-tensor", m, record(m, edit=lambda d: [t.update(block=2**40) for t in d["tensors"]] and None),
       "blocks of 2^40 elements", at)

    m = merges.two()
    at = put(m)
    ok("version-2-files", m, record(m, 2), "three files in version 2", at)
    ok("files", m, record(m), "three files, one of them left alone, one with its header kept", at)

    m = merges.long()
    at = put(m, tail=merges.LONG_ZEROS)
    ok("long", m, record(m), "every skip from 240 to 246, two blocks, a rest of two pieces", at)
    ok("version-2-long", m, record(m, 2), "the same in version 2", at)

    def short_skips(bs):
        bs[0].marks = [x for mark in bs[0].marks for x in ([mark] if mark < 241 else [mark - 1] * 4)]
    ok("long-skips-not-longest", m, record(m, blocks={0: short_skips}), "four skips in place of one", at)
    m.changed[0][1].block += 100
    ok("block-cuts-rows", m, record(m), "blocks that are no whole rows of the tensor", at)

    m = merges.empty()
    at = put(m)
    ok("empty-tensor", m, record(m), "a changed tensor without elements, which parts two pieces", at)
    ok("version-2-empty-tensor", m, record(m, 2), "the same in version 2", at)
    ok("skip-to-end", m, record(m, blocks={1: lambda bs: bs[0].marks.extend([240, 240])}), "skips of all elements of a block", at)
    m = merges.not_finite()
    ok("not-finite", m, record(m), "factors that are not finite", put(m))

    m = merges.grown()
    ok("version-2-grown", m, record(m, 2), "added rows and an added tensor, other tensors in another order", put(m))
    m = merges.untied()
    ok("version-2-untied", m, record(m, 2), "an added tensor and added rows in two files, with an index and config.json", put(m))
    m = merges.small()
    ok("version-2-side-empty", m, record(m, 2, edit=lambda d: d.update(side=[])), "no file beside the weights", put(m))

    m = merges.widths()
    ok("widths", m, record(m), "tensors of integers, complex numbers and 8-bit floats, predicted by `same`", put(m))
    ok("widths-planar", m, record(m, blocks={i: planar for i in range(len(m.changed))}), "the same, every block planar", put(m))


def backwards(v):
    if isinstance(v, dict):
        return {k: backwards(x) for k, x in reversed(v.items())}
    return [backwards(x) for x in v] if isinstance(v, list) else v
