"""Writes regexps.json: what Python's re.match says of keys as the releases of PEFT wrap them, for the names of some modules."""

import json
import re
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

KEYS = r"""
q_proj
attn.q_proj
layers.0.attn.q_proj
^layers.0.attn.q_proj
q_proj|k_proj
[qk]_proj
[^q]_proj
[]q]_proj
[^]q]_proj
layers\.\d+\.attn\.q_proj
layers\.\d{1,2}\.attn\.q_proj
layers\.\d{,1}\.attn\.q_proj
layers\.(?!1\b)\d+\.attn\.q_proj
layers\.(?=1\.).*q_proj
.*(?<=0\.attn\.)q_proj
.*(?<!0\.attn\.)q_proj
(?P<n>layers)\.\d+\.attn\.q_proj
(?P<a>.)\.attn\.(?P<b>q|k)_proj
(?P<w>t)(?P=w)n\.q_proj
(t)\1n\.q_proj
(t)\3n\.q_proj
q_proj\Z
q_proj$
\Aq_proj
\bq_proj
\w+_proj
\S+
.
.*
q_pro
(?:q|k)_proj
(?i:Q_PROJ)
(?#comment)q_proj
[\w.]+
layers\.(0|1)\.(attn|mlp)\.(q|up)_proj
(layers)\.(?:0|1)\..*
q_proj||k_proj
experts\.\d+\.w[13]
a\.b
\x71_proj
\u0071_proj
[qk]++_proj
(?:layers\.\d|x)*+\.attn\.q_proj
(?>q|q_)_proj
lin0
""".split()

NAMES = """q_proj lin0 layers.0.attn.q_proj layers.1.attn.q_proj layers.10.attn.q_proj layers.10.attn.k_proj xq_proj layers.0.mlp.up_proj
    model.layers.0.attn.q_proj model.layers.1.attn.q_proj model.layers.1.attn.]_proj blocks.3.experts.12.w1 a.b axb
    layers.0.attn.q_proj.extra größe.q_proj""".split()


def main():
    table = []
    for era, wrap in (("0.15", r"(.*\.)?(KEY)$"), ("0.14", r".*\.KEY$")):
        for key in KEYS:
            try:
                matches = [name for name in NAMES if re.match(wrap.replace("KEY", key), name)]
            except re.error:  # the release raises, so no adapter has the key
                continue
            table.append({"era": era, "key": key, "matches": matches})
    text = json.dumps({"names": NAMES, "python": sys.version.split()[0], "table": table}, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "regexps.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
