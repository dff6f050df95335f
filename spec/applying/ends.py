"""Tied ends and tensors that the base lacks, sections 12 and 13 of APPLY.md."""
import math, re
from collections import Counter
from reader import BITS, need
from .exact import FLOATS
from .files import Tensor, leaf, numbered, parent, tail
from .layers import form, wanted_names
from .names import best, translate
from .text import (EMBEDDINGS, HEADS, HEAD_NAMES, HEAD_SEGMENTS, HEAD_SEGMENTS_OF, LOOKUPS,
                   TIED_BY_DEFAULT, UNTIEABLE, WORDS)

# Section 12: tied ends

def is_end(name, words): return leaf(parent(name)) in words

class Ends:
    def __init__(self, base, adapters):
        ts, by = base.tensors, sorted(base.tensors)
        weights = [n for n in by if leaf(n) == "weight"]
        flat = [n for n in weights if len(ts[n].shape) == 2]
        named = [n for n in flat if is_end(n, EMBEDDINGS)]
        other = [n for n in flat if n not in named and not is_end(n, HEADS | LOOKUPS)
                 and not numbered(parent(n))]
        sized = [n for n in other if ts[n].shape[0] == base.vocabulary]
        head = next((s for a in adapters for s in head_shapes(a)), None)
        fitting = [n for n in other if n not in sized and ts[n].shape == head]
        asked = {l.module + ".weight" for a in adapters for l in a.layers if l.kind == "embedding"}
        asked |= {b[1] for a in adapters for b in a.taken("rows")}
        looked = {n for x in asked for n in ([x] if x in ts else [n for n in ts if
                  ("." + n).endswith("." + x) or ("." + x).endswith("." + n)])}
        looked = [n for n in flat if n in looked
                  and (is_end(n, EMBEDDINGS) or not is_end(n, LOOKUPS))
                  and not re.search("position|type", leaf(parent(n)))]
        sets = [named, [n for n in named if is_end(n, {"shared"})],
                [n for n in named if n in looked], sized, [n for n in sized if n in looked],
                fitting]
        if not named and not sized and not fitting: sets.append(looked)
        self.embedding = next((s[0] for s in sets if len(s) == 1), None)
        free = [n for n in weights if n != self.embedding and not numbered(parent(n))]
        heads = [n for n in free if is_end(n, HEADS)]
        if not heads and self.embedding:
            heads = [n for n in free if ts[n].shape == ts[self.embedding].shape
                     and not is_end(n, LOOKUPS) and "embed" not in parent(n)]
        self.head = heads[0] if heads else None
        self.tie = self.tied(base)
    def tied(self, base):
        generative = any(w in c for c in base.classes for w in WORDS)
        trunk = not generative and any(c.endswith("Model") and not c.endswith("EncoderModel")
                                       for c in base.classes)
        default, tie, head = base.type in TIED_BY_DEFAULT, base.tie, self.head
        if base.config is None: return "no" if head else "uncertain"
        if trunk: return "uncertain" if not head and (tie or tie is None and default) else "no"
        if not generative and base.classes: return "no"
        if tie is True or not head and base.text_tie is True: return "yes"
        if tie is False: return "uncertain" if not head and generative else "no"
        if head: return "uncertain" if default else "no"
        return "yes" if generative or default else "uncertain"
    def are(self, name):
        """Whether the name is one of the ends."""
        return name in (self.embedding, self.head) or \
            not self.embedding and is_end(name, EMBEDDINGS) and leaf(name) == "weight"

def head_shapes(a):
    for l in a.layers:
        if l.kind == "linear" and leaf(l.module) in HEADS: yield [l.B.shape[0], l.A.shape[1]]
    for _, target, _, t in a.taken("replace"):
        if is_end(target, HEADS): yield t.shape

def leave_out_copies(a, base):
    """12.2, R124."""
    def original(t):
        return any(leaf(x[1]) == leaf(t[1]) and base.ends_with(tail(x[1], 2)) and x[3].same(t[3])
                   for x in a.taken("replace"))
    copies = {t[1] for t in a.taken("replace")
              if not base.ends_with(tail(t[1], 2)) and original(t)}
    def out(t):
        if leaf(t) == "bias": return t in copies and parent(t) + ".weight" in copies
        return t in copies and leaf(t) == "weight"
    a.copies = any(out(t) for t in copies)
    a.beside = [b for b in a.beside if b[0] != "replace" or not out(b[1])]

def name_of_head(base, adapters, ends):
    """12.3: the name of a head that the base has not."""
    rows, columns = base.tensors[ends.embedding].shape
    for a in adapters:
        names = [(l.module + ".weight", l.kind, l) for l in a.layers]
        names += [(b[1], b[0], b[3]) for b in a.beside if b[1]]
        t, _ = best([n for n, *_ in names], base)
        for name, kind, x in names:
            y = t(name) or name
            if y in base.tensors or numbered(parent(name)): continue
            if kind in ("embedding", "rows") or is_end(name, EMBEDDINGS): continue
            shape = x.shape if isinstance(x, Tensor) else \
                [x.B.shape[0], x.A.shape[1]] if kind == "linear" and len(x.A.shape) > 1 else []
            if len(shape) == 2 and shape[0] >= rows and shape[1] == columns: return y
    known = HEAD_NAMES.get(base.type, "lm_head")
    if known is None: return None
    if base.type in HEAD_NAMES: return known + ".weight"
    before, found, _ = ends.embedding.partition(".model.")
    return (before + "." if found else "") + "lm_head.weight"

def tie(base, adapters, answer):
    """The steps of section 12 that come before all others."""
    ends = Ends(base, adapters)
    if answer: need(ends.tie != "no" and ends.embedding, "R127", f"tied: {ends.tie}")
    if ends.tie == "yes" and answer != "untie":
        for a in adapters: leave_out_copies(a, base)
    if not answer: return ends
    head = ends.head or name_of_head(base, adapters, ends)
    if answer == "untie":
        need(head and base.type not in UNTIEABLE, "R126", f"the head of {base.type}")
        t = base.tensors[ends.embedding]
        if ends.head: base.tensors[head].data = t.data
        else: base.tensors[head] = Tensor(t.dtype, t.shape, t.data, head)
        ends.tie, ends.head = "no", head
    else:
        ends.folded, ends.kept = head, base.tensors.pop(head, None)
        if head: base.alias[head] = ends.embedding
    base.changed()
    return ends

def fold(a, base, ends):
    """R125, and the name of the embedding for that of the head."""
    of_head = {x for x, y in a.names.items() if y == ends.folded}
    of_embedding = {x for x, y in a.names.items() if y == ends.embedding}
    if of_head and of_embedding:
        mine = [b for b in a.beside if b[1] in of_embedding]
        def same(b): return any(b[0] == c[0] and b[2] == c[2] and b[3].same(c[3]) for c in mine)
        need(all(b[1] not in of_head or same(b) for b in a.beside), "R125", ends.folded)
        need(not any(x in of_head for l in a.layers for x in getattr(l, "wanted", [])), "R125",
             ends.folded)
        a.beside = [b for b in a.beside if b[1] not in of_head]
    a.names = {x: base.alias.get(y, y) for x, y in a.names.items()}

def check_tie(a, ends):
    """R123."""
    for name in {*a.names.values()}:
        if not ends.are(name): continue
        rows = any(a.names[b[1]] == name for b in a.taken("rows"))
        replaced = any(a.names[b[1]] == name for b in a.taken("replace"))
        both = "weight-tying" in a.features or a.copies or rows and not replaced
        need(name != ends.head and both, "R123", name)


# Section 13: tensors that the base lacks

def resize(t, shape):
    need(t.dtype in FLOATS, "R81", f"{t.name} is {t.dtype}")
    t.data = (t.data + bytes(math.prod(shape) * BITS[t.dtype] // 8))
    t.shape = [*shape]
    t.data = t.data[:t.count() * BITS[t.dtype] // 8]

def grow(base, adapters, ends):
    grown = {}
    for a in adapters:
        wanted = [b[1] for b in a.taken("replace") if is_end(b[1], EMBEDDINGS | HEADS)]
        if not wanted: continue
        t, _ = best(wanted, base)
        names = {x: t(x) for x in wanted}
        for _, target, _, t in a.taken("replace"):
            name = names.get(target)
            if name is None or not base.has(name): continue
            old = base.of(name)
            if len(t.shape) > 0 and old.shape[1:] == t.shape[1:] and old.shape[0] < t.shape[0]:
                grown[base.alias.get(name, name)] = old.shape[0]
                if base.alias.get(name) and ends.kept: grown[ends.folded] = old.shape[0]
                resize(old, t.shape)
    for name, t in base.tensors.items():
        ends_or_like = ends.are(name) or is_end(name, EMBEDDINGS | HEADS)
        need(name in grown or not ends_or_like or not t.shape or t.shape[0] not in grown.values(),
             "R128", f"{name} does not grow")
    if getattr(ends, "kept", None) and ends.embedding in grown:
        resize(ends.kept, base.tensors[ends.embedding].shape)

def add_tensors(base, a, ends):
    for l in a.layers: l.form = form(l, a, base)
    saved = a.taken("replace")
    wanted = [n for n in wanted_names(a, base) if n not in {b[1] for b in saved}]
    if wanted: _, t = translate(wanted, base)
    else:
        t, found = best([b[1] for b in saved], base)
        need(found, "R88", "no translation finds a name")
    (F, p), added, new = t.prefix(), [], []
    ours = {parent(b[1]) for b in saved if leaf(b[1]) == "weight"}
    for _, target, _, tensor in saved:
        name = t(target)
        if name is None or not base.has(name): name = target if base.has(target) else name
        if name is not None and base.has(name):
            old = base.of(name)
            if old.shape == tensor.shape or is_end(name, EMBEDDINGS | HEADS): continue
            resize(old, tensor.shape)
            added.append((name, target, old))
        else: new.append((name, target, tensor))
    if new:
        counts = Counter()
        for x in base.tensors.values(): counts[x.dtype] += x.count()
        dtype = max(["F16", "BF16", "F32", "F64"], key=lambda d: counts[d])
    for name, target, tensor in new:
        need(not is_end(target, EMBEDDINGS) and (not is_end(target, HEADS) or ends.tie == "no"),
             "R129", target)
        need(tensor.dtype in FLOATS, "R129", tensor.dtype)
        module = parent(name or target)
        need(parent(target) in ours or not base.has(module + ".weight"),
             "R129", f"{target} without its weight")
        name = target.removeprefix(F) if p or name is None else name
        x = Tensor(dtype, [0], b"", name)
        resize(x, tensor.shape)
        added.append((name, target, x))
        base.tensors[name] = x
    if p and added:
        stay = HEAD_SEGMENTS | {n.split(".")[0] for n, _, _ in added}
        stay |= {s for s, models in HEAD_SEGMENTS_OF.items() if base.type in models}
        def spelled(n): return n if n.split(".")[0] in stay else p + n
        for n, x in base.tensors.items(): x.name = x.name if spelled(n) == n else p + x.name
        base.tensors = {spelled(n): x for n, x in base.tensors.items()}
    base.changed()
