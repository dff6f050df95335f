"""The vectors of testdata/vectors/apply: what comes out of each case, beside what index.txt says."""
import functools, hashlib, json, multiprocessing, os, shutil, tempfile
from reader import Invalid
from .exact import FLOATS
from .files import safetensors

def cases(folder):
    for record in open(os.path.join(folder, "index.txt"), encoding="utf-8").read().split("\n\n")[1:]:
        yield [tuple(line.split(": ", 1)) for line in record.strip().split("\n")]

def quiet(t):
    """The bytes, with every NaN as the positive one that is quiet and has no payload."""
    if t.dtype not in FLOATS: return t.data
    e, f = FLOATS[t.dtype]
    top = (2**e - 1) << f
    bits = [top | 1 << f - 1 if b & 2**(e + f) - 1 > top else b for b in t.bits()]
    return b"".join(b.to_bytes((e + f + 1) // 8, "little") for b in bits)

def run(merge, folder, case):
    """What is wrong with the outcome of a case, or None."""
    def all_of(key): return [v for k, v in case if k == key]
    def one(key): return next(iter(all_of(key)), "")
    adapters = [a.rsplit(" ", 1) for a in all_of("adapter")]
    answers = dict((a + " ").split(" ", 1) for a in all_of("answer"))
    answers = {k: v.strip() for k, v in answers.items()}
    path = os.path.join(folder, one("base"))
    with tempfile.TemporaryDirectory() as base:
        shutil.copy(path, os.path.join(base, "model.safetensors"))
        if one("config"):
            with open(os.path.join(base, "config.json"), "w") as f: f.write(one("config"))
        try:
            out = merge(base, [os.path.join(folder, a) for a, _ in adapters],
                        [float(w) for _, w in adapters], answers)
        except Invalid as e:
            rule = str(e).split(":")[0]
            return None if rule in one("rule").split() else f"{e}; want {one('rule') or 'ok'}"
        except Exception as e: return f"{type(e).__name__}: {e}"
    if one("expect") != "ok": return f"merged; want {one('rule')}"
    want = {n: t.data for n, t in safetensors(path) if n not in all_of("without")}
    changed = {}
    for line in all_of("tensor") + all_of("near"):
        name, dtype, shape, digest = line.rsplit(" ", 3)
        if line in all_of("near"): digest = hashlib.sha256(bytes.fromhex(digest)).hexdigest()
        changed[name] = dtype, json.loads(shape), digest
    if wrong := out.keys() ^ (want.keys() | changed.keys()): return f"other names: {sorted(wrong)}"
    for name, t in out.items():
        data = quiet(t) if one("nan") == "any" else t.data
        if name not in changed:
            if t.data != want[name]: return f"{name} changed"
        elif (t.dtype, t.shape, hashlib.sha256(data).hexdigest()) != changed[name]:
            return f"{name}: got {t.dtype} {t.shape} {data.hex(' ', 4)[:200]}"

def check_vectors(merge, folder):
    all_cases, wrong = [*cases(folder)], 0
    with multiprocessing.Pool() as pool:
        for case, what in zip(all_cases, pool.imap(functools.partial(run, merge, folder), all_cases)):
            if what: wrong += 1; print(f"{case[0][1]}: {what}")
    print(f"{len(all_cases)} vectors, {wrong} wrong")
    return wrong
