"""From names of the adapter to names of the base, section 4 of APPLY.md."""
import re
from collections import defaultdict
from reader import Invalid, need
from .files import numbered
from .text import PREFIXES, RENAMES, SENSES

class Translation:
    def __init__(self, cut="", put="", rename=None, lenient=False):
        self.cut, self.put, self.rename, self.lenient = cut, put, rename, lenient
    def prefix(self):
        """F and p of section 13, if nothing is put in their place."""
        F = max((F for F in PREFIXES if self.cut.startswith(F)), key=len)
        return F, "" if self.put else self.cut[len(F):]
    def __call__(self, name):
        rest = name[len(self.cut):]
        if not name.startswith(self.cut): return name if self.lenient and "." in name else None
        if "." not in rest: return None
        return self.put + (self.rename(rest) if self.rename else rest)

def step2(wanted, base, rename=None):
    def firsts(names): return sorted({x.split(".")[0] for x in names}, key=lambda x: (x != "model", x))
    for F in PREFIXES:
        yield Translation(F, "", rename)
        for x in firsts(x[len(F):] for x in wanted if x.startswith(F)):
            yield Translation(F + x + ".", "", rename)
        for y in firsts([*base.tensors, *base.alias]): yield Translation(F, y + ".", rename)

def renaming(pairs):
    def one(old, new):
        pattern = re.escape(old).replace("\\#", "#").replace("#", "([0-9]+)")
        if old[0] == "^": pattern = "^" + pattern.removeprefix("\\^")
        elif old[0] == ".": pattern = r"(?P<start>^|\.)" + pattern.removeprefix(r"\.")
        def fill(match):
            found = iter(match.groups()[1 if old[0] == "." else 0:])
            text = re.sub("#", lambda _: next(found), new.removeprefix("^"))
            return text[1:] if old[0] == text[0] == "." and not match["start"] else text
        return lambda name: re.sub(pattern, fill, name)
    steps = [one(*p) for p in pairs]
    def rename(name):
        for step in steps: name = step(name)
        return name
    return rename

OLDER = [(title, renaming([p[::-1] for p in pairs])) for title, pairs in RENAMES
         if "to newer only" not in title]
TABLES = [renaming(pairs) for title, pairs in RENAMES if "to older only" not in title] + \
         [rename for _, rename in OLDER]
OWN = next(rename for title, rename in OLDER if title.startswith("Meta's")) # METHODS.md, section 6

def place(name):
    """Where the place of the name begins."""
    s = name.split(".")
    first = next((i for i, x in enumerate(s) if numbered(x)), 0)
    return max(first - 1 if first else len(s) - 2, 0)
def core(segments):
    text = ".".join(segments)
    return [s for s in re.sub(r"(^|(?<=\.))base_model\.model(\.|$)", "", text).split(".")
            if s and s != "module"]
def within(a, b):
    rest = iter(b)
    return all(s in rest for s in a)
def step4(wanted, base):
    places = defaultdict(list)
    for y in {*base.tensors, *base.alias}:
        s = y.split(".")
        places[tuple(s[place(y):])].append(s[:place(y)])
    seen = set()
    for x in wanted:
        s = x.split(".")
        H = s[:place(x)]
        for G in places[tuple(s[place(x):])]:
            h, g = core(H), core(G)
            front = ".".join(H)
            if not (within(h, g) or within(g, h) and len(g) < len(h)
                    and not any(w in front for w in SENSES)): continue
            i = 0
            while i < min(len(H), len(G)) and H[-1 - i] == G[-1 - i]: i += 1
            cut, put = ("".join(t + "." for t in z[:len(z) - i]) for z in (H, G))
            if (cut, put) not in seen:
                seen.add((cut, put))
                yield abs(len(h) - len(g)), Translation(cut, put, lenient=bool(cut))

def translate(wanted, base):
    """The names of the base for the wanted names, by the first step that fits."""
    wanted = [*dict.fromkeys(wanted)]
    def fitting(translations):
        out = {}
        for t in translations:
            names = []
            for x in wanted:
                y = t(x)
                if y is None or "." not in x or not base.has(y): break
                names.append(y)
            else: out.setdefault(tuple(names), t)
        return out
    def sized():
        found = [(size, t, fitting([t])) for size, t in step4(wanted, base)]
        found = [(size, t, f) for size, t, f in found if f]
        least = [x for x in found if x[0] == min(x[0] for x in found)]
        results = {n: t for _, t, f in least for n in f}
        if len(results) == 1 and any(w in t.put for _, t, _ in least for w in SENSES): least = found
        return {n: t for _, t, f in least for n in f}
    for step in (lambda: fitting([Translation()]), lambda: fitting(step2(wanted, base)),
                 lambda: fitting(t for r in TABLES for t in step2(wanted, base, r)), sized):
        found = step()
        need(len(found) < 2, "R89", f"several translations fit: {[*found][:2]}")
        for names, t in found.items(): return dict(zip(wanted, names)), t
    need(False, "R88", f"no translation fits {wanted[:3]}")

def best(wanted, base):
    """The best translation of the names, and how many it finds."""
    def found(t): return sum(t(x) is not None and base.has(t(x)) for x in wanted)
    try: t = translate(wanted, base)[1]
    except Invalid: t = max([Translation(), *step2(wanted, base)], key=found)
    return t, found(t)
