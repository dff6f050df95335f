"""Reads the tables of internal/architecture/tables. It follows their README, not the Go code."""

import pathlib
import re

TABLES = pathlib.Path(__file__).parent.parent.parent / "internal" / "architecture" / "tables"


class Row:
    """One native module: its name with #, and its parts, (module, share, shares, square)."""

    def __init__(self, native, parts):
        self.native, self.parts = native, parts
        self.only_square = all(p[3] for p in parts)


def join(a, b):
    return f"{a}.{b}" if a and b else a or b


def part(text):
    m = re.fullmatch(r"([^\[\]:]+)(?:\[(\d+)/(\d+)\])?(:n)?", text.strip())
    return m[1], int(m[2] or 1), int(m[3] or 1), bool(m[4])


def split(path):
    """Returns the lines of each section of a file."""
    sections, name = {"": []}, ""
    for line in path.read_text().splitlines():
        line = line.strip()
        if not line or line == "#" or line.startswith(("# ", "name ", "component ")):
            continue
        if line.startswith("["):
            name = line[1:-1]
            sections[name] = []
        else:
            sections[name].append(line)
    return sections


def read(path, rest=None):
    """Returns the rows of a table, or of a file of the rest, below the modules of the table."""
    sections = split(path)
    if rest:
        more = split(rest)
        assert more.keys() <= sections.keys(), f"{rest.name}: {more.keys() - sections.keys()}"
        for name, lines in sections.items():
            sections[name] = [line for line in lines if "{" in line] + more.get(name, [])

    def expand(section, native, other):
        for line in sections[section]:
            m = re.fullmatch(r"([^={]+?)\s*(?:=\s*([^{]+?))?\s*(?:\{(\w+)\})?", line)
            left, right, below = m[1], m[2] or m[1], m[3]
            if below:
                yield from expand(below, join(native, left), join(other, right))
            else:
                parts = [part(p) for p in right.split("+")]
                yield Row(join(native, left), [(join(other, n), *rest) for n, *rest in parts])

    return list(expand("", "", ""))


def regex(pattern):
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)") + r"\Z")


def fill(pattern, numbers):
    for n in numbers:
        pattern = pattern.replace("#", n, 1)
    return pattern
