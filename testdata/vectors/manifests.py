"""Files that break a rule of sections 6 and 7: the manifest's text and its records. The frames around it are right."""
import copy

from builder import adapter, canonical, example, frame, layer, lora, model, noise, opaque, raw, repeated, rle, stock, tensor
import valid
from kit import bad


def add():
    text()
    members()
    types()
    lists()
    layers()
    experts()
    beside()
    tensors()
    attachments()


def written(name, change, comment, minor=0, **more):
    """The example with another text: change is (old, new) or a function of the right text."""
    t = canonical(example().manifest)
    new = change(t) if callable(change) else t.replace(*change, 1)
    assert new != t, name
    bad(name, lora(example(), text=new, minor=minor, manifest_frame=stock if len(new) > 4096 else None), comment, **more)


def changed(name, change, comment, base=example, minor=0, **more):
    """A valid model, base(), with another manifest; the tensors stay. Digests are those of base()."""
    m = base()
    e = copy.deepcopy(m.manifest)
    change(e)
    assert e != m.manifest, name
    new = canonical(e)
    bad(name, lora(m, text=new, minor=minor, manifest_frame=stock if len(new) > 4096 else None), comment, **more)


def said(name, m, comment, minor=0, **more):
    """The model as it is; the model breaks the rule."""
    bad(name, lora(m, minor=minor), comment, **more)


META = b'"metadata":{}'


def meta(b):
    return META, b'"metadata":' + b


def ignored(minor, where, also):
    """Members of a later minor, which break a rule of the text."""
    def member(rule, name, v, comment, more=""):
        written(f"r{rule}-{name}", lambda t: t[:-1] + b',"zz":' + v + b"}", comment + " a member of a later minor", minor=minor,
                rule=f"R{rule}{more}{also}")

    for rule, name, v, comment, more in (
            (24, "", b"9007199254740992", "2^53", ""), (19, "true-", b"true", "true", ""), (19, "null-", b"[null]", "null", ""),
            (21, "unsorted-", b'{"b":0,"a":0}', "b before a", ""), (22, "escape-", rb'"\/"', "an escaped slash", ""),
            (23, "fraction-", b"0.5", "0.5", " R19"), (20, "space-", b"[ ]", "a space", "")):
        member(rule, f"{name}in-{where}-member", v, comment + " in", more)
    deep = "" if minor == 1 else f"-minor-{minor}"
    member(25, "17-deep" + deep, b"[" * 16 + b"]" * 16, "arrays 17 deep in")
    member(25, "objects-18-deep" + deep, b'{"a":' * 16 + b"{}" + b"}" * 16, "objects 18 deep, in")


def text():
    m = canonical(example().manifest)
    written("r18-bom", lambda t: b"\xef\xbb\xbf" + t, "a byte order mark", rule="R18 R19", rows="8")
    written("r18-invalid-byte", meta(b'{"a":"\xff"}'), "the byte FF", rows="27")
    written("r18-cut-sequence", meta(b'{"a":"\xc3"}'), "the first byte of a sequence of two", rows="27")
    written("r18-cesu-surrogates", meta(b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}'), "a character as two encoded surrogates", rows="27")
    written("r18-lone-surrogate", meta(b'{"a":"\xed\xa0\x80"}'), "an encoded surrogate", rows="27")
    written("r18-overlong-nul", meta(b'{"a":"\xc0\x80"}'), "NUL in two bytes", rows="27")
    written("r18-overlong-slash", meta(b'{"a":"\xe0\x80\xaf"}'), "a slash in three bytes", rows="27")
    written("r18-above-10ffff", meta(b'{"a":"\xf4\x90\x80\x80"}'), "U+110000", rows="27")
    written("r18-in-a-key", meta(b'{"\x80":""}'), "a continuation byte as a key", rows="27")
    written("r18-utf-16", lambda t: t.decode().encode("utf-16-le"), "UTF-16", rule="R18 R19 R22")

    ex = example()
    bad("r19-empty", lora(ex, text=b""), "a manifest of no bytes")
    for name, t, comment, rule in (
            ("array", b"[]", "an array", None), ("null", b"null", "null", None), ("string", b'""', "a string", None),
            ("number", b"0", "a number", None), ("two-objects", m + b"{}", "two objects", None),
            ("nul-appended", m + b"\0", "a NUL after the object", "R19 R20"), ("cut", m[:-1], "the last brace is missing", None),
            ("brace-more", m + b"}", "a brace too many", "R19 R25"),
            ("comment", m.replace(META, b"/**/" + META), "a comment", None),
            ("trailing-comma", m.replace(b'"rank":1,', b'"rank":1,,'), "two commas", None),
            ("comma-at-end", m[:-1] + b",}", "a comma before the last brace", None),
            ("single-quotes", m.replace(META, b"'metadata':{}"), "single quotes", None),
            ("key-without-quotes", m.replace(META, b"metadata:{}"), "a key without quotes", None),
            ("colon-missing", m.replace(META, b'"metadata"{}'), "a colon is missing", None),
            ("true", m.replace(META, b'"metadata":{"a":true}'), "true", "R19 R28"),
            ("null-member", m.replace(META, b'"metadata":null'), "null for a member", "R19 R28"),
            ("false-for-a-number", m.replace(b'"rank":1', b'"rank":false'), "false for a number", "R19 R28"),
            ("nan", m.replace(b'"alpha":2', b'"alpha":NaN'), "NaN", "R19 R23 R28"),
            ("infinity", m.replace(b'"alpha":2', b'"alpha":-Infinity'), "-Infinity", "R19 R23 R28"),
            ("unclosed-string", m.replace(b'"module":"q"', b'"module":"q'), "a quote is missing", "R19 R21 R22 R26 R27 R28")):
        written("r19-" + name, lambda _, t=t: t, comment, rule=rule, rows="76" if name in ("nan", "infinity") else "21" if "appended" in name else "22" if name == "cut" else "")
    for name, t, comment in (("space-after-colon", m.replace(b'"rank":1', b'"rank": 1'), "a space"),
            ("newline-at-end", m + b"\n", "a line feed at the end"),
                             ("space-at-start", b" " + m, "a space at the start"),
                             ("tab", m.replace(b'"metadata":{}', b'"metadata":{\t}'), "a tab"),
                             ("cr", m.replace(b"},{", b"},\r{"), "a carriage return"),
                             ("space-in-array", m.replace(b"[1,2]", b"[1, 2]"), "a space in an array"),
                             ("spaces-at-end", m + b" " * 9, "spaces at the end")):
        written("r20-" + name, lambda _, t=t: t, comment, rows="21" if "end" in name else "")
    written("r20-form-feed", (b'"rank":1', b'"rank":\x0c1'), "a form feed, which is no white space of JSON", rule="R20 R19")
    for name, t, comment, rule in (
            ("unsorted", b'{"b":"","a":""}', "b before a", None), ("repeated", b'{"a":"","a":""}', "a twice", None),
            ("repeated-values-differ", b'{"a":"1","a":"2"}', "a twice with other values", None),
            ("repeated-by-escape", b'{"a":"","\\u0061":""}', "a twice, once as an escape", "R21 R22"),
            ("utf-16-order", '{"\U0001f600":"","\ufffd":""}'.encode(), "in the order of UTF-16", None),
            ("length-order", b'{"b":"","aa":""}', "shorter keys first", None),
            ("case", b'{"a":"","B":""}', "without regard to case", None),
            ("prefix-last", b'{"ab":"","a":""}', "a key before its beginning", None),
            ("written-order", b'{"a":"","\\n":""}', "in the order of the escapes as written: a line feed sorts first", None)):
        written("r21-" + name, meta(t), comment, rule=rule, rows="23 28" if name in ("unsorted", "repeated") else "")
    written("r21-top-level", lambda t: t[:-1] + b',"metadata":{}}', "a member of the manifest twice", rows="23")
    written("r21-in-a-record", (b'"rank":1,"roles"', b'"rank":1,"rank":1,"roles"'), "rank twice")
    written("r21-roles-unsorted", (b'{"A":0,"B":1}', b'{"B":1,"A":0}'), "B before A")
    written("r21-role-twice", (b'{"A":0,"B":1}', b'{"A":0,"A":0,"B":1}'), "two A", rows="77")
    for name, t, comment, rule in (
            ("slash", rb'\/', "an escaped slash", None), ("escaped-letter", rb'\u0061', "an escaped letter", None),
            ("uppercase-hex", rb'\u001F', "hex in capitals", None), ("long-tab", rb'\u0009', "a tab that is not \\t", None),
            ("long-line-feed", rb'\u000a', "a line feed that is not \\n", None),
            ("long-backspace", rb'\u0008', "a backspace that is not \\b", None),
            ("long-quote", rb'\u0022', "a quote that is not \\\"", None),
            ("long-backslash", rb'\u005c', "a backslash that is not \\\\", None),
            ("escaped-del", rb'\u007f', "DEL as an escape", None), ("escaped-c1", rb'\u0080', "U+0080 as an escape", None),
            ("escaped-accent", rb'\u00e9', "é as an escape", None),
            ("escaped-line-separator", rb'\u2028', "U+2028 as an escape", None),
            ("surrogate-pair", rb'\ud83d\ude00', "a character as two escaped surrogates", None),
            ("lone-surrogate", rb'\ud800', "an escaped surrogate alone", "R22 R18"),
            ("surrogates-reversed", rb'\ude00\ud83d', "escaped surrogates in the wrong order", "R22 R18"),
            ("raw-tab", b"\t", "a tab as it is", "R22 R19"), ("raw-line-feed", b"\n", "a line feed as it is", "R22 R19"),
            ("raw-nul", b"\0", "NUL as it is", "R22 R19"),
            ("unknown-escape", rb'\x41', "an escape that JSON does not have", "R22 R19"),
            ("short-escape", rb'\u41', "two hex digits", "R22 R19"),
            ("octal", rb'\0', "\\0", "R22 R19"), ("bell", rb'\a', "\\a", "R22 R19"), ("vertical-tab", rb'\v', "\\v", "R22 R19"),
            ("no-hex", rb'\u00g0', "no hex digit", "R22 R19")):
        written("r22-" + name, meta(b'{"a":"' + t + b'"}'), comment, rule=rule, rows="27" if "surrogate" in name else "")
    written("r22-in-a-key", meta(rb'{"\/":""}'), "an escaped slash in a key")
    written("r22-in-a-name", (b'"module":"q"', rb'"module":"\u0071"'), "an escaped letter in a name")
    for name, old, new, comment, rule in (
            ("minus-zero", b'"alpha":2', b'"alpha":-0', "-0", None), ("leading-zero", b'"rank":1', b'"rank":01', "01", "R23 R19"),
            ("plus", b'"rank":1', b'"rank":+1', "+1", "R23 R19"), ("fraction", b'"rank":1', b'"rank":1.0', "1.0", "R23 R19 R28"),
            ("real", b'"alpha":2', b'"alpha":0.5', "0.5", "R23 R19 R28"),
            ("exponent", b'"alpha":2', b'"alpha":2e0', "2e0", "R23 R19 R28"),
            ("hex", b'"rank":1', b'"rank":0x1', "0x1", "R23 R19"), ("point-at-end", b'"rank":1', b'"rank":1.', "1.", "R23 R19"),
            ("minus-alone", b'"alpha":2', b'"alpha":-', "-", "R23 R19"),
            ("minus-leading-zero", b'"alpha":2', b'"alpha":-02', "-02", "R23 R19"),
            ("huge-exponent", b'"alpha":2', b'"alpha":1E999999999', "1E999999999", "R23 R19 R28")):
        written("r23-" + name, (old, new), comment, rule=rule)
    for name, n in (("2-53", 2**53), ("minus-2-53", -2**53), ("2-63", 2**63), ("2-64", 2**64), ("2-64-plus-2", 2**64 + 2)):
        written("r24-" + name, (b'"alpha":2', b'"alpha":%d' % n), f"alpha {n}", rows="36" if name == "2-64-plus-2" else "")
    written("r24-5000-digits", (b'"alpha":2', b'"alpha":' + b"9" * 5000), "5,000 digits")
    written("r24-shape", (b'"shape":[1,2]', b'"shape":[0,18446744073709551615]'), "0 by 2^64 - 1", rows="37 34")
    written("r24-shape-reversed", (b'"shape":[1,2]', b'"shape":[18446744073709551615,0]'), "2^64 - 1 by 0", rows="37 34")
    # Version 1.1 has been closed since, so its minor is no later one.
    for minor, where, also in ((1, "ignored", " R27"), (2, "later", "")):
        ignored(minor, where, also)
    t = b'{"adapters":' + b"[" * 200000
    bad("r25-200000-deep", lora(example(), text=t, manifest_frame=frame(t, raw(t[:16]) + rle(91, 2**17) + rle(91, len(t) - 16 - 2**17, True))),
        "200,000 brackets that open", rule="R25 R19 R28", rows="82")


def members():
    root = ("adapters", "attachments", "metadata", "provenance", "tensors")
    for k in root:
        changed(f"r26-manifest-{k}", lambda m, k=k: m.pop(k), f"no member {k}", rows="26" if k == "tensors" else "")

    def rich():
        return model([adapter(requires=[{"feature": "f", "where": ""}], layers=[layer("q", {"A": 0, "B": 1}), layer("r", {}, kind="other", scaling="fixed", scale=1)],
                              beside=[{"action": "rows", "rows": [3], "target": "t", "tensor": 2}, {"action": "replace", "target": "t", "tensor": 3},
                                      {"action": "opaque", "tensor": 4}])],
                     [tensor("a", "U8", [1, 1]), tensor("b", "U8", [1, 1]), tensor("c", "U8", [1]), tensor("d", "U8", [1]), tensor("e", "U8", [1])],
                     [("x", b"x")])
    at = {"adapter": lambda m: m["adapters"][0], "provenance": lambda m: m["provenance"], "base": lambda m: m["adapters"][0]["base"],
          "require": lambda m: m["adapters"][0]["requires"][0], "layer": lambda m: m["adapters"][0]["layers"][0],
          "layer-fixed": lambda m: m["adapters"][0]["layers"][1], "rows": lambda m: m["adapters"][0]["beside"][0],
          "replace": lambda m: m["adapters"][0]["beside"][1], "opaque": lambda m: m["adapters"][0]["beside"][2],
          "tensor": lambda m: m["tensors"][0], "attachment": lambda m: m["attachments"][0]}
    for record, k in (("adapter", "base"), ("adapter", "beside"), ("adapter", "dialect"), ("adapter", "layers"),
            ("adapter", "method"), ("adapter", "name"),
                      ("adapter", "orientation"), ("adapter", "requires"), ("provenance", "source"), ("provenance", "tool"),
                      ("base", "fingerprints"),
                      ("base", "revision"), ("require", "where"), ("require", "feature"), ("layer", "alpha"), ("layer", "kind"),
                      ("layer", "module"),
                      ("layer", "rank"), ("layer", "roles"), ("layer", "scaling"), ("layer-fixed", "scale"), ("rows", "rows"),
                      ("rows", "target"),
                      ("rows", "action"), ("replace", "target"), ("opaque", "tensor"), ("tensor", "coding"), ("tensor", "dtype"),
                      ("tensor", "name"),
                      ("tensor", "shape"), ("attachment", "sha256"), ("attachment", "size"), ("attachment", "name")):
        changed(f"r26-{record}-{k}", lambda m: at[record](m).pop(k), f"no member {k}", rich)
    changed("r27-manifest", lambda m: m.update(later=""), "a member that version 1.0 does not have", rows="24")
    for record in at:
        changed(f"r27-{record}", lambda m: at[record](m).update(later=1), "a member that version 1.0 does not have", rich)
    for record, k, v, comment in (("layer", "scale", 2, "scale, though scaling is alpha/r"),
            ("layer-fixed", "alpha", 2, "alpha, though scaling is fixed"),
                                  ("replace", "rows", [0], "rows, though action is replace"),
                                  ("opaque", "target", "t", "a target, though action is opaque"),
                                  ("tensor", "data_offsets", [0, 1], "offsets, as in safetensors")):
        changed(f"r27-{record}-{k}", lambda m: at[record](m).update({k: v}), comment, rich, rows="76" if k == "scale" else "45" if k == "data_offsets" else "")
    written("r27-minor-1", lambda t: t[:-1] + b',"zz":0}', "an unknown member in a file of version 1.1", minor=1)
    changed("r27-minor-name", lambda m: m["adapters"][0].update(Name=""), "Name is not name", rich)


def types():
    L = lambda m: m["adapters"][0]["layers"][0]
    A = lambda m: m["adapters"][0]
    T = lambda m: m["tensors"][0]
    F = [{"feature": "f", "where": ""}]
    for name, change, comment in (
            ("adapters-object", lambda m: m.update(adapters={}), "an object for an array"),
            ("adapter-array", lambda m: m.update(adapters=[[]]), "an array for an object"),
            ("adapter-string", lambda m: m.update(adapters=[""]), "a string for an object"),
            ("metadata-array", lambda m: m.update(metadata=[]), "an array for an object"),
            ("metadata-number", lambda m: m.update(metadata={"a": 1}), "a number for a text"),
            ("metadata-object", lambda m: m.update(metadata={"a": {}}), "an object for a text"),
            ("name-number", lambda m: A(m).update(name=0), "a number for a name?"),
            ("module-number", lambda m: L(m).update(module=1), "a number for a name"),
            ("rank-string", lambda m: L(m).update(rank="1"), "a string for a count"),
            ("rank-negative", lambda m: L(m).update(rank=-1), "a negative count"),
            ("shape-negative", lambda m: T(m).update(shape=[-1, -2]), "negative dimensions, whose product is right"),
            ("shape-string", lambda m: T(m).update(shape="1,2"), "a string for an array"),
            ("shape-number", lambda m: T(m).update(shape=2), "a number for an array"),
            ("shape-nested", lambda m: T(m).update(shape=[[1, 2]]), "an array for a count"),
            ("roles-array", lambda m: L(m).update(roles=[0, 1]), "an array for an object"),
            ("index-negative", lambda m: L(m)["roles"].update(B=-1), "a negative index"),
            ("index-string", lambda m: L(m)["roles"].update(B="q.lora_B.weight"), "a name for an index"),
            ("index-array", lambda m: L(m)["roles"].update(B=[1]), "an array for an index"),
            ("alpha-array", lambda m: L(m).update(alpha=[2]), "an array for a real"),
            ("dtype-number", lambda m: T(m).update(dtype=32), "a number for an enumerated string"),
            ("kind-object", lambda m: L(m).update(kind={}), "an object for an enumerated string"),
            ("scaling-number", lambda m: L(m).update(scaling=1), "a number for an enumerated string"),
            ("base-string", lambda m: A(m).update(base=""), "a string for an object"),
            ("method-empty-array", lambda m: A(m).update(method=[]), "an array for an enumerated string"),
            ("fingerprint-short", lambda m: A(m)["base"]["fingerprints"].update(a="0" * 63), "a digest of 63 digits"),
            ("fingerprint-empty", lambda m: A(m)["base"]["fingerprints"].update(a=""), "an empty digest, where none may be"),
            ("fingerprint-capitals", lambda m: A(m)["base"]["fingerprints"].update(a="A" * 64), "a digest in capitals"),
            ("fingerprint-no-hex", lambda m: A(m)["base"]["fingerprints"].update(a="g" * 64), "a digest of other letters"),
            ("fingerprint-fullwidth", lambda m: A(m)["base"]["fingerprints"].update(a="\uff10" * 64), "a digest of fullwidth digits"),
            ("sha256-prefix", lambda m: m["attachments"][0].update(sha256="sha256:" + "0" * 64), "a digest with a prefix"),
            ("sha256-line-feed", lambda m: m["attachments"][0].update(sha256="0" * 64 + "\n"), "a digest and a line feed"),
            ("size-negative", lambda m: m["attachments"][0].update(size=-3), "a negative size"),
            ("size-string", lambda m: m["attachments"][0].update(size="3"), "a string for a count"),
            ("requires-strings", lambda m: A(m).update(requires=["dora"]), "a string for an object")):
        changed("r28-" + name, change, comment)
    changed("r28-rows-string", lambda m: A(m)["beside"][0].update(rows="0"), "a string for an array", rows_model)
    changed("r28-rows-negative", lambda m: A(m)["beside"][0]["rows"].__setitem__(1, -1), "a negative row", rows_model)
    for name, change, comment, rows in (
            ("dtype", lambda m: T(m).update(dtype="F8"), "dtype F8", "39"),
            ("dtype-lowercase", lambda m: T(m).update(dtype="f32"), "dtype f32", "39"),
            ("dtype-empty", lambda m: T(m).update(dtype=""), "an empty dtype", "39"),
            ("dtype-space", lambda m: T(m).update(dtype="F32 "), "dtype F32 and a space", "39"),
            ("coding", lambda m: T(m).update(coding="planes2"), "coding planes2", "41"),
            ("coding-empty", lambda m: T(m).update(coding=""), "an empty coding", "41"),
            ("kind", lambda m: L(m).update(kind="conv3d"), "kind conv3d", ""),
            ("scaling", lambda m: L(m).update(scaling="alpha/r^2"), "another scaling", ""),
            ("method", lambda m: A(m).update(method="vera", requires=F), "method vera", ""),
            ("method-other", lambda m: A(m).update(method="other", requires=F), "other, without colon", ""),
            ("method-empty", lambda m: A(m).update(method="", requires=F), "an empty method", ""),
            ("method-capital", lambda m: A(m).update(method="Other:x", requires=F), "Other:x", ""),
            ("orientation", lambda m: A(m).update(orientation="nxn"), "another orientation", "")):
        changed("r29-" + name, change, comment, rows=rows)
    changed("r29-action", lambda m: A(m)["beside"][0].update(action="add"), "action add", rows_model)
    for name, v, comment in (
            ("nan", "7ff8000000000000", "NaN"), ("infinity", "7ff0000000000000", "infinity"),
            ("minus-infinity", "fff0000000000000", "-infinity"),
            ("integer", "4030000000000000", "16 as bits"), ("zero", "0000000000000000", "0 as bits"),
            ("minus-zero", "8000000000000000", "-0 as bits"),
            ("2-53-minus-1", "433fffffffffffff", "2^53 - 1 as bits"), ("minus-3", "c008000000000000", "-3 as bits"),
            ("capitals", "3FE0000000000000", "hex in capitals"), ("15-digits", "3fe000000000000", "15 digits"),
            ("17-digits", "3fe00000000000000", "17 digits"),
            ("decimal", "0.5", "0.5 as a string"), ("integer-string", "16", "16 as a string"), ("empty", "", "an empty string"),
            ("prefix", "0x3fe00000000000", "0x and 14 digits"),
            ("space", "3fe000000000000 ", "a space for a digit"), ("line-feed", "3fe0000000000000\n", "16 digits and a line feed")):
        changed("r30-" + name, lambda m: L(m).update(alpha=v), comment, rows="76" if name in ("nan", "infinity", "minus-infinity") else "")
    changed("r30-scale", lambda m: m["adapters"][0]["layers"][0].update(scale="7ff0000000000000"), "an infinite scale",
            lambda: model([adapter(layers=[layer("q", {}, kind="other", scaling="fixed", scale=1)])], []), rows="76")
    for name, v in (("empty", ""), ("nul", "a\0b"), ("line-feed", "a\nb"), ("us", "\x1f"), ("del", "a\x7f")):
        changed(f"r31-tensor-{name}", lambda m: T(m).update(name=v), f"{v!r} as a tensor's name", rows="32")
        changed(f"r31-module-{name}", lambda m: L(m).update(module=v), f"{v!r} as a module")
    for name, change, comment in (
            ("adapter", lambda m: A(m).update(name="\t"), "a tab as an adapter's name"),
            ("dialect", lambda m: A(m).update(dialect="pe\nft"), "a line feed in the dialect"),
            ("role-empty", lambda m: L(m).update(roles={"": 0, "B": 1}), "an empty role"),
            ("metadata-key", lambda m: m.update(metadata={"": "x"}), "an empty key"),
            ("metadata-key-control", lambda m: m.update(metadata={"\x01": "x"}), "a control character as a key"),
            ("fingerprint-key", lambda m: A(m)["base"]["fingerprints"].update({"": "0" * 64}), "a fingerprint of no name"),
            ("feature", lambda m: A(m).update(requires=[{"feature": "", "where": ""}]), "an empty feature"),
            ("where", lambda m: A(m).update(requires=[{"feature": "f", "where": "\n"}]), "a line feed as where"),
            ("attachment", lambda m: m["attachments"][0].update(name="a\rb"), "a carriage return in an attachment's name")):
        changed("r31-" + name, change, comment, rule="R31 R38" if name == "role-empty" else None)
    changed("r31-target", lambda m: A(m)["beside"][0].update(target=""), "an empty target", rows_model)
    changed("r31-method", lambda m: A(m).update(method="other:", requires=[{"feature": "f", "where": ""}]), "no name after other:", rule="R31 R29")
    changed("r31-method-control", lambda m: A(m).update(method="other:\0", requires=[{"feature": "f", "where": ""}]), "NUL after other:", rule="R31 R29")
    for name, change, comment in (
            ("tensor", lambda m: T(m).update(name="x" * 1025), "a tensor's name of 1,025 bytes"),
            ("tensor-bytes", lambda m: T(m).update(name="é" * 512 + "x"), "513 characters, 1,025 bytes"),
            ("module", lambda m: L(m).update(module="x" * 1025), "a module of 1,025 bytes"),
            ("role", lambda m: L(m).update(roles={"A": 0, "B": 1, "C" * 1025: 0}), "a role of 1,025 bytes"),
            ("adapter", lambda m: A(m).update(name="x" * 1025), "an adapter's name of 1,025 bytes"),
            ("attachment", lambda m: m["attachments"][0].update(name="x/" * 512 + "y"), "an attachment's name of 1,025 bytes"),
            ("metadata-key", lambda m: m.update(metadata={"x" * 1025: ""}), "a key of 1,025 bytes"),
            ("method", lambda m: A(m).update(method="other:" + "x" * 1025, requires=[{"feature": "f", "where": ""}]), "a name of 1,025 bytes after other:")):
        changed("r32-" + name, change, comment, rule="R32 R46" if name == "role" else None, rows="32" if "tensor" in name else "")


def rows_model():
    return model([adapter(beside=[{"action": "rows", "rows": [4, 2], "target": "t", "tensor": 0}])], [tensor("a", "U8", [2, 3])])


def lists():
    def two(names, mods=("a", "b")):
        return model([adapter(name=n, layers=[layer("q", {"A": 2 * i, "B": 2 * i + 1})]) for i, n in enumerate(names)],
                     [tensor(f"{r}{i}", "U8", [1, 1]) for i in range(len(names)) for r in "AB"])
    said("r33-adapters", two(("b", "a")), "adapters b, a", rows="23")
    said("r33-adapters-equal", two(("a", "a")), "two adapters a", rows="23 30")
    said("r33-adapters-utf-16", two(("\U0001f600", "\ufffd")), "in the order of UTF-16")
    said("r34-no-adapter", model([], []), "no adapter")
    said("r35-first-empty", two(("", "a")), "the first of two adapters has no name")
    said("r35-both-empty", two(("", "")), "both adapters have no name", rule="R35 R33")
    for name, method in (("dora", "dora"), ("other", "other:ia3")):
        changed(f"r36-{name}", lambda m: m["adapters"][0].update(method=method), f"method {method} and nothing required")

    def mods(*names):
        return model([adapter(layers=[layer(n, {"A": 2 * i, "B": 2 * i + 1}) for i, n in enumerate(names)])],
                     [tensor(f"{r}{i}", "U8", [1, 1]) for i in range(len(names)) for r in "AB"])
    said("r33-layers", mods("q", "p"), "layers q, p")
    said("r33-layers-equal", mods("q", "q"), "two layers for one module", rows="77")
    said("r33-layers-natural-order", mods("l.2", "l.10"), "2 before 10: the order is that of bytes")
    for name, v, comment in (("requires", [("b", ""), ("a", "")], "features b, a"), ("requires-equal", [("a", "x"),
            ("a", "x")], "a requirement twice"),
                             ("requires-where", [("a", "y"), ("a", "x")], "where y before x for one feature"),
                             ("requires-joined", [("a", "z"), ("aa", ""), ("a\"", "")], "features a, aa, a\"")):
        changed("r33-" + name, lambda m: m["adapters"][0].update(requires=[{"feature": f, "where": w} for f, w in v]), comment)

    def opaques():
        return opaque(tensor("a", "U8", [1]), tensor("b", "U8", [1]))
    changed("r33-beside", lambda m: m["adapters"][0]["beside"].reverse(), "tensors 1, 0", opaques)
    changed("r33-beside-equal", lambda m: m["adapters"][0]["beside"].append({"action": "opaque", "tensor": 1}), "tensor 1 twice", opaques, rule="R33 R46 R47")
    for name, ns, comment in (("attachments", ("b", "a"), "attachments b, a"),
            ("attachments-equal", ("a", "a"), "two attachments a"),
                              ("attachments-path-order", ("a/b", "a.b"), "a/b before a.b: / is after .")):
        said("r33-" + name, model([adapter()], [], [(n, b"x") for n in ns]), comment)


def shaped(a, b, rank=1, kind="linear", more=(), **roles):
    """One layer with A and B of these shapes; more are the shapes of further tensors."""
    ts = [tensor(f"t{i}", "U8", s) for i, s in enumerate([a, b, *more])]
    return model([adapter(layers=[layer("q", {"A": 0, "B": 1} | roles, rank, kind=kind)])], ts)


def layers():
    said("r37-rank-0", shaped([0, 2], [2, 0], 0), "rank 0, and the shapes agree", rows="74")
    said("r37-rank-0-other", model([adapter(layers=[layer("q", {}, 0, kind="other")])], []), "rank 0 of a layer of kind other", rows="74")
    said("r37-rank-65537", shaped([65537, 0], [0, 65537], 65537), "rank 65,537, and the shapes agree", rows="74")
    said("r37-rank-2-53-minus-1", model([adapter(layers=[layer("q", {}, 2**53 - 1, kind="other")])], []), "the largest rank that a number can say", rows="74")
    for kind in ("linear", "embedding", "conv", "expert"):
        for missing in "AB":
            left = "AB".replace(missing, "")
            said(f"r38-{kind}-without-{missing.lower()}", model([adapter(layers=[layer("q", {left: 0}, kind=kind)])], [tensor("t", "U8", [1, 1])]),
                 f"no {missing}", rows="77")
    said("r38-no-roles", model([adapter(layers=[layer("q", {})])], []), "no role", rows="77")
    said("r38-lowercase", model([adapter(layers=[layer("q", {"a": 0, "b": 1})])], [tensor("t", "U8", [1, 1]), tensor("u", "U8", [1, 1])]), "roles a and b", rows="77")
    for name, a, r, comment in (("one-dimension", [2], 2, "one dimension"),
            ("three-dimensions", [2, 3, 1], 2, "three dimensions"), ("scalar", [], 1, "a scalar"),
                                ("rank", [3, 2], 2, "3 x 2, rank 2"), ("transposed", [4, 2], 2, "n x r")):
        said("r39-" + name, shaped(a, [4, r], r), comment, rows="74 75" if name in ("rank", "transposed") else "")
    said("r39-embedding", shaped([5, 2], [3, 2], 2, "embedding"), "A of an embedding that is n x r", rows="74")
    for name, b, r, comment in (("one-dimension", [2], 2, "one dimension"),
            ("three-dimensions", [3, 2, 1], 2, "three dimensions"), ("scalar", [], 1, "a scalar"),
                                ("rank", [2, 3], 2, "2 x 3, rank 2"), ("transposed", [2, 4], 2, "r x m")):
        said("r40-" + name, shaped([r, 4], b, r), comment, rows="74 75" if name in ("rank", "transposed") else "")
    said("r40-embedding", shaped([2, 5], [2, 3], 2, "embedding"), "B of an embedding that is r x m", rows="74")
    for name, s, comment in (("n-elements", [4], "n elements"), ("scalar", [], "a scalar"), ("empty", [0], "none"),
            ("6-elements", [6], "6 elements"),
                             ("matrix", [3, 2], "3 x 2 elements")):
        said("r41-" + name, shaped([1, 4], [3, 1], more=[s], bias=2), f"a bias of {comment}, m is 3 and n is 4")
    said("r41-embedding", shaped([1, 4], [3, 1], kind="embedding", more=[[4]], bias=2), "an embedding's bias of n elements")
    for name, s, comment in (("5-elements", [5], "5 elements"), ("scalar", [], "a scalar"), ("empty", [0], "none"),
            ("m-by-n", [3, 4], "3 x 4 elements")):
        said("r42-" + name, shaped([1, 4], [3, 1], more=[s], magnitude=2), f"a magnitude of {comment}, m is 3 and n is 4", rows="79")


def experts():
    """Version 1.1: kinds that say which dimension of a square matrix A reads."""
    for kind in ("inputs", "outputs", "first", "second"):
        said(f"r38-expert-{kind}-without-b", model([adapter(layers=[layer("q", {"A": 0}, kind="expert-" + kind)])], [tensor("t", "U8", [1, 1])]), "no B",
             minor=1)
    for name, a, b, r, comment in (
            ("a-of-three-dimensions", [2, 1, 3], [3, 2], 1, "A has a dimension for the experts"), ("a-of-one-dimension", [6], [3, 6], 3, "A has one dimension"),
            ("b-of-three-dimensions", [2, 3], [3, 2, 1], 1, "B has three dimensions"), ("b-scalar", [2, 3], [], 1, "B is a scalar"),
            ("experts-differ", [4, 3], [3, 6], 2, "two experts in A, three in B"), ("no-multiple", [5, 3], [3, 5], 2, "5 rows, rank 2"),
            ("less-than-the-rank", [1, 3], [3, 1], 2, "1 row, rank 2"), ("no-expert", [0, 3], [3, 0], 2, "no expert")):
        said("r71-" + name, shaped(a, b, r, "expert-inputs"), comment, minor=1)
    said("r72-not-square", shaped([4, 3], [5, 4], 2, "expert-first"), "n is 3 and m is 5, and the shape tells which is which", minor=1)
    said("r72-outputs", shaped([4, 3], [0, 4], 2, "expert-outputs"), "n is 3 and m is 0", minor=1)
    said("r73-magnitude", shaped([4, 3], [3, 4], 2, "expert-second", more=[[3]], magnitude=2), "a magnitude", minor=1)
    said("r73-unknown-role", shaped([4, 3], [3, 4], 2, "expert-inputs", more=[[]], x=2), "a role x", minor=1)
    said("r29-kind-expert-third", shaped([4, 3], [3, 4], 2, "expert-third"), "kind expert-third", minor=1)


def beside():
    def rows(v, shape):
        return model([adapter(beside=[{"action": "rows", "rows": v, "target": "t", "tensor": 0}])], [tensor("a", "U8", shape)])
    said("r43-twice", rows([5, 7, 5], [3, 2]), "row 5 twice")
    said("r43-zeros", rows([0, 0], [2]), "row 0 twice")
    said("r44-less", rows([1], [2, 2]), "one row for two")
    said("r44-more", rows([1, 2, 3], [2, 3]), "three rows for two")
    said("r44-none", rows([], [2]), "no row for two")
    said("r44-scalar", rows([1], []), "a row for a scalar")
    said("r44-none-for-scalar", rows([], []), "no row for a scalar")
    said("r44-empty-tensor", rows([1], [0, 2]), "a row for none")


def tensors():
    L = lambda m: m["adapters"][0]["layers"][0]
    changed("r45-role", lambda m: L(m)["roles"].update(bias=2), "index 2 of 2 tensors", rows="29 73")
    changed("r45-role-huge", lambda m: L(m)["roles"].update(bias=2**53 - 1), "index 2^53 - 1", rows="29 73")
    changed("r45-beside", lambda m: m["adapters"][0]["beside"].append({"action": "opaque", "tensor": 2}), "index 2 of 2 tensors", rows="29 73")
    changed("r45-no-tensors", lambda m: m["adapters"][0]["layers"].append(layer("q", {"x": 0}, kind="other")), "index 0 of no tensors",
            lambda: model([adapter()], []), rows="29")
    unit = lambda: model([adapter(layers=[layer("q", {"A": 0, "B": 1})])], [tensor("a", "U8", [1, 1]), tensor("b", "U8", [1, 1])])
    one = lambda: model([adapter(layers=[layer("q", {"x": 0}, kind="other")])], [tensor("a", "U8", [1, 1])])
    changed("r46-two-roles", lambda m: L(m)["roles"].update(y=0), "a tensor in two roles", one, rule="R46 R47", rows="78")
    changed("r46-two-layers", lambda m: m["adapters"][0]["layers"].append(layer("r", {"A": 0, "B": 1})), "two layers share their factors", unit, rule="R46 R47",
            rows="78 85")
    changed("r46-role-and-beside", lambda m: m["adapters"][0]["beside"].append({"action": "opaque", "tensor": 1}), "a tensor in a role and beside", unit,
            rule="R46 R47", rows="78")
    two = lambda: model([adapter(name="a", layers=[layer("q", {"A": 0, "B": 1})]), adapter(name="b", layers=[layer("q", {}, kind="other")])],
                        [tensor("a", "U8", [1, 1]), tensor("b", "U8", [1, 1])])
    changed("r46-two-adapters", lambda m: m["adapters"][1]["layers"][0].update(roles={"A": 0, "B": 1}), "two adapters share their factors", two, rows="73 85")
    bad("r46-shared-without-the-bit", lora(valid.sharing()[1], minor=1), "two adapters share a factor, and bit 0 is not set")
    m = valid.sharing()[1]
    m.manifest["adapters"][1]["layers"][0]["roles"]["x"] = 0
    m.manifest["adapters"][1]["layers"][0]["kind"] = "other"
    bad("r46-shared-within", lora(m, minor=1, critical=1), "bit 0 is set, and one of the adapters refers to a tensor twice")
    bad("r77-nothing-shared", lora(valid.sharing()[0], minor=1, critical=1), "a bundle without a shared tensor, and bit 0 is set")
    bad("r77-one-adapter", lora(example(), minor=1, critical=1), "bit 0 is set for one adapter")
    changed("r46-nobody", lambda m: m["adapters"][0]["beside"].pop(), "a tensor that nobody refers to", lambda: opaque(tensor("a", "U8", [1]), tensor("b", "U8", [1])))
    changed("r46-nobody-empty", lambda m: m["adapters"][0].update(beside=[]), "an empty tensor that nobody refers to", lambda: opaque(tensor("a", "U8", [0])))
    said("r47-in-a-layer", model([adapter(layers=[layer("q", {"A": 0, "B": 1})])], [tensor("w", "U8", [1, 1]), tensor("w", "U8", [1, 1], b"b")]),
         "A and B have one name", rows="30")
    said("r47-layer-and-beside", model([adapter(layers=[layer("q", {"x": 0}, kind="other")], beside=[{"action": "opaque", "tensor": 1}])],
                                       [tensor("w", "U8", [1]), tensor("w", "I8", [2])]), "a factor and a tensor beside have one name", rows="30")
    said("r47-beside", opaque(tensor("w", "U8", [0]), tensor("v", "U8", [1]), tensor("w", "U8", [0])), "two empty tensors have one name", rows="30")
    said("r48-metadata", opaque(tensor("__metadata__", "U8", [1])), "a tensor named __metadata__", rows="32")
    record = b'{"coding":"raw","dtype":"U8","name":"a","shape":[0]},'
    head, end = canonical(model([adapter()], []).manifest).split(b'"tensors":[')
    t = head + b'"tensors":[' + (record * (2**20 + 1))[:-1] + end
    body = (record * (2**20 + 1))[:-1]
    blocks = raw(head + b'"tensors":[') + unlast(repeated(record, len(body)), len(body)) + raw(end, True)
    bad("r49-tensors", lora(model([adapter()], []), text=t, manifest_frame=frame(t, blocks)),
        "2^20 + 1 tensors, all of one name; more than 2^20 that are referred to do not fit into 64 MiB", rule="R49 R46", options=f"manifest={2**26}", rows="34")
    said("r50-9-dimensions", opaque(tensor("a", "U8", [1] * 9)), "nine dimensions of 1", rows="35")
    said("r50-9-dimensions-empty", opaque(tensor("a", "U8", [0] * 9)), "nine dimensions of 0", rows="35")
    said("r50-1000-dimensions", opaque(tensor("a", "U8", [1] * 1000)), "1,000 dimensions of 1", rows="35")
    for name, s, comment in (("0-by-2-48-plus-1", [0, 2**48 + 1], "0 by 2^48 + 1"),
            ("2-48-plus-1-by-0", [2**48 + 1, 0], "2^48 + 1 by 0"),
                             ("2-24-by-0-by-2-25", [2**24, 0, 2**25], "2^24 by 0 by 2^25"),
                             ("0-by-2-53-minus-1", [0, 2**53 - 1], "0 by 2^53 - 1"),
                             ("2-53-minus-1-by-0", [2**53 - 1, 0], "2^53 - 1 by 0"),
                             ("wraps-with-zero", [2**32, 2**32, 0], "2^64 by 0")):
        said("r51-" + name, opaque(tensor("a", "U8", s)), comment, rows="37" if "by-0" in name or "0-by" in name else "36 37")
    top = f"total={2**48}"
    for name, s, comment in (("wraps-to-0", [2**32, 2**32], "2^64 elements"), ("wraps-to-2", [2, 2**32, 2**32], "2^65 elements"),
                             ("wraps-to-1", [274177, 67280421310721], "2^64 + 1 elements: 274177 x 67280421310721"),
                             ("2-49", [2**24, 2**25], "2^49 elements")):
        changed("r51-" + name, lambda m: m["tensors"][0].update(shape=s), comment, lambda: opaque(tensor("a", "U8", [1])), rule="R51 R56", options=top, rows="36")
    changed("r51-f4", lambda m: m["tensors"][0].update(shape=[2**49]), "2^49 elements of four bits, 2^48 bytes", lambda: opaque(tensor("a", "F4", [2])),
            options=top)
    for name, dtype, s, n in (("f4", "F4", [3], 2), ("f4-one", "F4", [], 1), ("f4-3-by-5", "F4", [3, 5], 8),
            ("f6", "F6_E2M3", [3], 3), ("f6-two", "F6_E3M2", [2], 2),
                              ("f6-one", "F6_E3M2", [1, 1], 1)):
        said("r52-" + name, opaque(tensor("a", dtype, s, noise(name, n))), f"{dtype} {s}: no whole number of bytes", rule="R52", rows="38")
    changed_dtypes = ("F4", "F6_E2M3", "BOOL", "U8", "F8_E4M3", "F8_E8M0", "I16", "U16", "I32", "U32", "I64", "C64")
    for d in changed_dtypes:
        changed(f"r53-{d.lower().replace('_', '-')}", lambda m: m["tensors"][0].update(coding="planes"), f"planes of {d}", lambda: opaque(tensor("a", d, [4])), rows="40")


def unlast(blocks, n):
    """The same blocks, the last one not marked last."""
    i = 0
    while True:
        h = int.from_bytes(blocks[i:i + 3], "little")
        if h & 1:
            return blocks[:i] + bytes([blocks[i] & 0xFE]) + blocks[i + 1:]
        i += 3 + (1 if h >> 1 & 3 == 1 else h >> 3)


def attachments():
    for name, v in (("parent", "../x"), ("parent-alone", ".."), ("parent-inside", "a/../b"), ("parent-at-end", "a/.."),
            ("here", "./x"), ("here-alone", "."),
                    ("here-inside", "a/./b"), ("root", "/etc/passwd"), ("slash", "/"), ("slash-at-end", "a/"),
                    ("two-slashes", "a//b"), ("drive", "C:x"),
                    ("drive-path", "C:/x"), ("stream", "a:b"), ("backslash", "a\\b"), ("backslash-parent", "..\\x"),
                    ("unc", "\\\\host\\x")):
        said("r54-" + name, model([adapter()], [], [(v, b"x")]), f"{v} as an attachment's name", rows="84")
