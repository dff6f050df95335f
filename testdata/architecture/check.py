"""Proves the tables of internal/architecture against diffusers and transformers. See README.md."""

import hashlib
import math
import pathlib
import re
import sys

import diffusers
import torch
import transformers

import adapters
import rest
import table
from models import MODELS

HERE = pathlib.Path(__file__).parent
TABLES = table.TABLES


def parameter(module, word):
    return f"{module}_{word}" if module.split(".")[-1] == "in_proj" else f"{module}.{word}"


def shapes_of(make):
    with torch.device("meta"):
        model = make()
    return model, {name: tuple(p.shape) for name, p in model.state_dict().items()}


def fits(row, shapes, numbers):
    """Whether a row is about weights of the shapes that the model has."""
    if not row.only_square:
        return True
    rows, columns = shapes[table.fill(row.parts[0][0], numbers) + ".weight"][:2]
    return rows == columns * row.parts[0][2]


def native_modules(rows, shapes):
    """Yields (native module, parts) for each row of the table and each block in the class."""
    for row in rows:
        pattern = table.regex(row.parts[0][0] + ".weight")
        for name in shapes:
            if m := pattern.match(name):
                numbers = m.groups()
                twin = next((r for r in rows if r is not row and r.native == row.native), None)
                square = row if row.only_square else twin
                if twin and fits(square, shapes, numbers) != row.only_square:
                    continue
                yield table.fill(row.native, numbers), [
                    (table.fill(n, numbers), *more) for n, *more in row.parts]


class Tags:
    """Gives each row of each parameter its own number, 0, 1, 2, … through the model."""

    def __init__(self, shapes):
        self.values, at = {}, 0
        for name, shape in shapes.items():
            whole = len(shape) > 1 and math.prod(shape) < 1 << 22 and ".weight" not in name
            whole |= name == "text_projection.weight"  # transposed
            shape = shape if whole else shape[:1] + (1,) * (len(shape) - 1)
            n = math.prod(shape)
            self.values[name] = torch.arange(at, at + n).reshape(shape)
            at += n


def build(rows, pairs, shapes, tags):
    """Makes the native state dict by the table. Returns it and the names it was made from."""
    state, used = {}, []
    for module, parts in native_modules(rows, shapes):
        for word in ("weight", "bias"):
            pieces = []
            for name, share, of, square in parts:
                value = tags[f"{name}.{word}"] if f"{name}.{word}" in tags else None
                if value is None:
                    continue
                size = value.shape[0] // of
                assert size * of == value.shape[0]
                if square:
                    assert size == shapes[f"{name}.weight"][1], f"{name} is not square"
                pieces.append(value[(share - 1) * size : share * size])
                used.append((f"{name}.{word}", share, of))
            assert len(pieces) in (0, len(parts)), f"{module}: a part lacks its {word}"
            others = {len(x) for x, p in zip(pieces, parts) if not p[3]}
            assert len(others) < 2, f"{module}: parts without :n differ in their rows"
            if pieces:
                assert parameter(module, word) not in state, f"{module} is made twice"
                state[parameter(module, word)] = torch.cat(pieces)
    for left, right in pairs:
        pattern = table.regex(right)
        for name in tags:
            if m := pattern.match(name):
                value = tags[name].T.contiguous() if left == "text_projection" else tags[name]
                state[table.fill(left, m.groups())] = value
                used.append((name, 1, 1))
    return state, used


def check(name, model, make):
    """Returns a line of the result. It raises an AssertionError if the table is wrong."""
    rows = table.read(TABLES / f"{name}.txt")
    pairs = rest.rest(name)
    instance, shapes = shapes_of(make)
    without = name == "clip" and not any(k.startswith("text_model.") for k in shapes)
    if without:  # the class has the native names, which are the right ones without "text_model."
        rows = [table.Row(r.native, [(r.native, 1, 1, False)]) for r in rows]
        pairs = [(a, a) for a, _ in pairs]
    tags = Tags(shapes).values
    state, used = build(rows, pairs, shapes, tags)

    shares = {}
    for key, share, of in used:
        shares.setdefault(key, []).append((share, of))
    lacking = shapes.keys() - shares.keys()
    assert not lacking, f"not in the table: {sorted(lacking)[:5]}"
    for key, have in shares.items():
        assert sorted(have) == [(i + 1, len(have)) for i in range(len(have))], f"{key}: {have}"

    # Every weight of two or more dimensions is in the table; the rest is listed by name.
    left_out = {p for p in (re.sub(r"\.\d+\.", ".#.", k) for k in shapes
                if len(shapes[k]) > 1 and any(table.regex(b).match(k) for _, b in pairs))}

    if convert := rest.CONVERT.get(name):
        got = convert(dict(state), instance)
    elif name == "clip" and not without:
        got = {k if k.startswith("text_projection") else "text_model." + k: v
               for k, v in state.items()}
    else:
        got = state
    assert got.keys() == tags.keys(), f"differ: {sorted(got.keys() ^ tags.keys())[:6]}"
    for key, want in tags.items():
        assert got[key].shape == want.shape, f"{key}: {got[key].shape}, want {want.shape}"
        assert torch.equal(got[key], want), f"{key}: other rows"

    matched = {r.native for r in rows if any(
        table.regex(r.parts[0][0] + ".weight").match(k) for k in shapes)}
    how = "converter" if name in rest.CONVERT else "names"
    weights = sum(len(s) > 1 for s in shapes.values())
    line = f"{name:14} {model:24} {len(shapes):5} parameters, {weights:5} weights, by {how}"
    return line + "".join(f"\n{'':14} left out: {p}" for p in sorted(left_out)), matched


def main():
    lines, seen = [], {}
    for name, model, make in MODELS:
        line, matched = check(name, model, make)
        print(line, flush=True)
        lines.append(line)
        seen.setdefault(name, set()).update(matched)
    for name, model, *how in adapters.ADAPTERS:
        make = next(m for n, l, m in MODELS if (n, l) == (name, model))
        instance, shapes = shapes_of(make)
        modules = list(native_modules(table.read(TABLES / f"{name}.txt"), shapes))
        lines.append(adapters.check(name, model, *how, instance, modules, Tags(shapes).values))
        print(lines[-1], flush=True)
    for path in sorted(TABLES.glob("*.txt")):
        unused = {r.native for r in table.read(path)} - seen.get(path.stem, set())
        assert not unused, f"{path.name}: no model has {sorted(unused)}"
        for file in (path, rest.REST / path.name):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"sha256 {digest} {file.parent.name}/{file.name}")
    head = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, " \
           f"torch {torch.__version__.split('+')[0]}"
    (HERE / "RESULT.txt").write_text("\n".join([head, "", *lines]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
