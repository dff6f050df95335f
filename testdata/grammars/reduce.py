"""Reduce listings of published adapters to one module of each pattern.

    python reduce.py LISTINGS

LISTINGS is a directory of JSON files, each an object from the names of tensors to their shapes, or
to objects with a shape. grammars.json keeps, of the modules whose names differ only in numbers, the
one that comes first, with all its tensors.
"""

import json
import re
import sys
from pathlib import Path

STEM = re.compile(r"\.(lora_|alpha|dora_|lokr_|norm\.|(down|up)\.weight)")

reduced = {}
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    first, kept = {}, {}
    for name, shape in json.loads(path.read_text()).items():
        stem = name[:STEM.search(name).start()]
        pattern = re.sub(r"\d+", "#", stem)
        if first.setdefault(pattern, stem) == stem:
            kept[name] = shape["shape"] if isinstance(shape, dict) else shape
    reduced[path.stem] = kept
lines = [f'"{name}": {{\n' + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in kept.items()) + "}"
         for name, kept in reduced.items()]
(Path(__file__).parent / "grammars.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
