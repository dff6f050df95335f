"""The comparison with another program over the fixtures of testdata/peft."""
import functools, glob, json, multiprocessing, os, subprocess, tempfile
from collections import Counter
from reader import Invalid
from .files import Base

OPTIONS = {"ExpertsSlowest": "expert-slowest", "ExpertInput": "expert-input", "Tied": "tied",
           "GrowVocabulary": "grow-vocabulary", "OutProjTwice": "out-proj-twice",
           "RecomputeResidual": "recompute-residual", "AddTensors": "add-tensors"}
ANSWERS = {"linear-input": ["1", "2"], "expert-input": ["1", "2"], "tied": ["untie", "fold"],
           **dict.fromkeys(["expert-slowest", "expert-turns", "out-proj-twice", "recompute-residual", "again",
                            "grow-vocabulary", "add-tensors", "any-base", "allow-nonfinite"])}

def answers_of(case):
    options = case.get("options", {} if "base" in case else {"AddTensors": True})
    return {OPTIONS[k]: "" if v is True else str(v) for k, v in options.items()}

def compare(merge, tool, fixtures, path, scratch):
    """What differs in a fixture, and how it ended."""
    case = json.load(open(os.path.join(path, "case.json")))
    base = os.path.join(fixtures, "bases", case["base"]) if "base" in case else path + "/base"
    base = os.path.join(base, case.get("file", ""))
    adapters = [os.path.join(path, a) for a in case.get("adapters", ["adapter"])]
    weights = case.get("weights") or [1.0] * len(adapters)
    answers = answers_of(case)
    flags = [f"--{k}={v}" if v else f"--{k}" for k, v in answers.items()]
    flags += [f"--weight={w}" for w in weights]
    def run(*args): return subprocess.run([tool, *args], capture_output=True, text=True)
    there = run("merge", "-q", base, *adapters, "-o", os.path.join(scratch, "out"), *flags)
    files = [os.path.join(scratch, f"{i}.lora") for i in range(len(adapters))]
    for a, f in zip(adapters, files):
        if run("convert", "-q", a, "-o", f).returncode:
            return [] if there.returncode else [f"no .lora of {a}"], "refused by convert"
    try: here, why = merge(base, files, weights, answers), ""
    except Invalid as e: here, why = None, str(e)
    if here is None or there.returncode:
        both = here is None and there.returncode and why.startswith(case.get("refused", ""))
        told = there.stderr.strip().split("\n")[0] if there.returncode else "merged"
        return [] if both else [f"the tool: {told}; the text: {why or 'merged'}"], \
            f"refused by both ({why.split(':')[0]})" if both else "different"
    out = {t.name: t for t in Base(os.path.join(scratch, "out")).tensors.values()}
    if os.path.exists(path + "/merged.safetensors"):
        want = {t.name: t for t in Base(path + "/merged.safetensors").tensors.values()}
        if want.keys() != here.keys() or not all(t.same(here[n]) for n, t in want.items()):
            return ["not the result that is kept"], "different"
    wrong = [f"{n}: only one program has it" for n in here.keys() ^ out.keys()]
    for n in sorted(here.keys() & out.keys()):
        x, y = here[n], out[n]
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            wrong.append(f"{n}: {x.dtype} {x.shape}, the tool has {y.dtype} {y.shape}")
        elif x.data != y.data:
            count = sum(p != q for p, q in zip(x.bits(), y.bits()))
            wrong.append(f"{n}: {count} of {x.count()} elements differ")
    return wrong, "different" if wrong else "equal"

def compare_in(merge, tool, fixtures, path):
    with tempfile.TemporaryDirectory() as scratch:
        return compare(merge, tool, fixtures, path, scratch)

def check(merge, tool, fixtures):
    paths = sorted(os.path.dirname(p) for depth in ("*", "*/*")
                   for p in glob.glob(os.path.join(fixtures, depth, "case.json")))
    ends = Counter()
    with multiprocessing.Pool() as pool:
        results = pool.imap(functools.partial(compare_in, merge, tool, fixtures), paths)
        for path, (wrong, how) in zip(paths, results):
            refused = "/refuse/" in path or '"refused"' in open(path + "/case.json").read()
            if how.startswith("refused by both") and not refused:
                wrong = [f"not merged, {how}"]
            ends["different" if wrong else how] += 1
            for line in wrong: print(f"{path}: {line}")
    print(f"{len(paths)} cases: " + ", ".join(f"{n} {how}" for how, n in sorted(ends.items())))
    return ends["different"]
