"""What Python's re.match says of expressions and texts.

`python make.py` writes pairs.jsonl: fixed expressions, and a sample of random ones.
`python make.py N SEED FILE` writes N random pairs for the comparison by hand:
`go test ./internal/pyre -run Pairs -pairs FILE`.

The truth is that of CPython 3.11. Each line is one expression with its texts; "error" stands for one
that Python rejects.
"""

import json
import random
import re
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

FIXED = [
    # expression, texts
    (r"", ["", "a"]), (r"a", ["a", "b", "ab"]), (r"a|b|", ["b", "c"]), (r"a.c", ["abc", "a\nc"]),
    (r"(?s)a.c", ["a\nc"]), (r"a$", ["a", "a\n", "a\n\n", "ab"]), (r"(?m)a$", ["a\nb"]), (r"a\Z", ["a", "a\n"]),
    (r"(?m)a\n^b", ["a\nb"]), (r"a\n^b", ["a\nb"]), (r"\Aa", ["a"]), (r"\b\B", ["", "a"]), (r"\B", ["", "."]),
    (r"\ba\b", ["a", "ab", "a."]), (r"[]a]+$", ["]a", "b"]), (r"[^]a]", ["]", "b"]), (r"[a-]", ["-", "b"]),
    (r"[\d-]", ["-", "5", "\u0665"]), (r"[b-a]", ["a"]), (r"[\d-z]", ["-"]), (r"[a", ["a"]), (r"[", ["["]),
    (r"[a-z-[aeiou]]", ["b]", "-]", "a]"]), (r"[a\]]", ["]"]), (r"a{,2}$", ["", "aa", "aaa"]), (r"a{,}$", ["aaaa"]),
    (r"a{2}$", ["aa", "a"]), (r"a{", ["a{"]), (r"a{1", ["a{1"]), (r"a{1,", ["a{1,"]), (r"a{}", ["a{}", "a"]),
    (r"{1}", ["{1}"]), (r"x{1}{2}", ["xx"]), (r"a{2,1}", ["aa"]), (r"a{99999999999}", ["a"]), (r"a{4294967294}", ["a"]),
    (r"a**", ["a"]), (r"a*?*", ["a"]), (r"a++b", ["aab"]), (r"a+++", ["a"]), (r"*a", ["a"]), (r"^*", [""]), (r"\b+", ["a"]),
    (r"(?=a)*a", ["a"]), (r"()*a", ["a"]), (r"(?:){3}a", ["a"]), (r"(a*)*$", ["aaa", "b"]), (r"(a*)+$", ["", "aab"]),
    (r"(a|ab)(c|bcd)(d*)$", ["abcd"]), (r"(a?){3}$", ["aa", "aaaa"]), (r"(?:a|b)*?c", ["abac", "ab"]),
    (r"a*+a", ["aaa"]), (r"(?:ab)*+a", ["aba", "ab"]), (r"(?>a*)a", ["aa"]), (r"(?>a|ab)c", ["abc", "ac"]), (r"a?+a", ["a", "aa"]),
    (r"a{1,2}+a$", ["aa", "aaa"]), (r"(a)(?:b)*+\1", ["abba"]),
    (r"(a)\1", ["aa", "ab"]), (r"(a)|b\1", ["b", "ba"]), (r"\1(a)", ["aa"]), (r"(a\1)", ["aa"]), (r"(\1)", [""]), (r"(a)\2", ["aa"]),
    (r"(?P<n>a)(?P=n)", ["aa"]), (r"(?P=n)", ["a"]), (r"(?P<n>a)(?P<n>b)", ["ab"]), (r"(?P<1>a)", ["a"]), (r"(?P<é>a)(?P=é)", ["aa"]),
    (r"(?P<>a)", ["a"]), (r"(?P<n", ["a"]), (r"(?P<n>a)(b)\1\2", ["abab"]), (r"(?P!a)", ["a"]), (r"(?<n>a)", ["a"]),
    (r"(a)?(?(1)b|c)$", ["ab", "c", "b", "ac"]), (r"(?P<n>a)?(?(n)b)$", ["ab", "", "a"]), (r"(?(1)a|b)(c)", ["bc", "ac"]),
    (r"(?(2)a|b)(c)", ["bc"]), (r"(a)?(?(1)b|c|d)", ["ab"]), (r"(?(0)a)", ["a"]), (r"(?(n)a)", ["a"]), (r"(a(?(1)b|c))", ["ac", "ab"]),
    (r"(?=ab)a", ["ab", "ac"]), (r"(?!ab)a", ["ab", "ac"]), (r"a(?<=a)b", ["ab"]), (r"a(?<!a)b", ["ab"]), (r"ab(?<=a|bc)", ["ab"]),
    (r"ab(?<=ab|cd)", ["ab"]), (r"(?<=a*)b", ["b"]), (r"(?<=a{2})b", ["b"]), (r"(?<!a)b", ["b"]), (r"aab(?<=(?:a){2}b)", ["aab"]),
    (r"(a)b(?<=\1b)", ["ab"]), (r"(a*)b(?<=\1b)", ["ab"]), (r"a(?<=(a)\1)", ["aa"]), (r"(a)(?<=(?(1)a|b))", ["a"]), (r"(?<=(?(1)ab|b))(a)", ["a"]),
    (r"(?=(a+))\1$", ["aaa"]), (r"(?=(a+))a*b\1", ["baaabac", "aabaa"]), (r"(?!(a)b)\1", ["a"]), (r"((?=(a))b)?\2", ["a"]),
    (r"(?i)aB", ["Ab"]), (r"a(?i)b", ["ab"]), (r"(?i:a)b", ["Ab", "AB"]), (r"(?i:a(?-i:b))", ["Ab", "AB"]), (r"(?-i:a)", ["a"]),
    (r"(?i)k", ["\u212a", "K"]), (r"(?i)s", ["\u017f"]), (r"(?i)\u017f", ["S"]), (r"(?i)i", ["\u0130", "\u0131", "I"]),
    (r"(?i)[h-j]", ["\u0131", "I", "k"]), (r"(?i)[^i]", ["\u0131", "I", "k"]), (r"(?ia)k", ["\u212a", "K"]), (r"(?i)(s)\1", ["s\u017f", "sS"]),
    (r"(?i)\u0390", ["\u1fd3"]), (r"(?i)[\u1fe3]", ["\u03b0"]), (r"(?i)\ufb05", ["\ufb06"]),
    (r"(?i)\u00df", ["\u1e9e"]), (r"(?i)\u03c3", ["\u03c2", "\u03a3"]), (r"(?i)\u01c4", ["\u01c5", "\u01c6"]), (r"(?i)[\u0400-\u042f]", ["\u0430", "\u0451"]),
    (r"\d", ["\u0663", "\u00b2", "\u2460", "9"]), (r"\w", ["\u00b2", "\u2460", "\u0663", "\u4e00", "\u203f", "\u0301", "_", "\u00e9"]),
    (r"\s", ["\x1c", "\x85", "\u00a0", "\u200b", "\u3000", "\u180e", "\v"]), (r"(?a)\d", ["\u0663"]), (r"(?a)\w", ["\u00e9"]), (r"(?a)\s", ["\x1c", "\u00a0", "\f"]),
    (r"(?a:\w)\w", ["\u00e9\u00e9", "e\u00e9"]), (r"(?au)a", ["a"]), (r"(?a)(?u)a", ["a"]), (r"(?L)a", ["a"]), (r"(?a:a(?u:\w))", ["a\u00e9"]),
    (r"(?x) a b # c", ["ab"]), (r"(?x)a [ ] b", ["a b"]), (r"(?x:a b) c", ["ab c", "abc"]), (r"(?x)a\ b", ["a b"]), (r"(?x)a *", ["aa"]), (r"(?x)(  # (", ["a"]),
    (r" (?x)a", [" a"]), (r"(?x) (?i)A", ["a"]), (r"(?i)(?x) A", ["a"]), (r"(?z)a", ["a"]), (r"(?i", ["a"]), (r"(?i-i:a)", ["a"]), (r"(?-:a)", ["a"]), (r"(?-a:a)", ["a"]), (r"(?i-:a)", ["a"]),
    (r"(?-i)a", ["a"]), (r"(?", ["a"]), (r"(?:", ["a"]), (r"(", ["("]), (r")", [")"]), (r"a)", ["a"]), (r"(?#c)a", ["a"]), (r"(?#c", ["a"]), (r"a(?#c)*", ["aaa"]),
    ("\\", ["\\"]), (r"\x41", ["A"]), (r"\x4", ["a"]), (r"\u0041", ["A"]), (r"\u004", ["A"]), (r"\U0001f600", ["\U0001f600"]), (r"\U00110000", ["a"]), (r"\0", ["\0"]), (r"\012", ["\n"]),
    (r"\101", ["A"]), (r"\400", ["a"]), (r"[\101]", ["A"]), (r"[\1]", ["\1"]), (r"[\8]", ["8"]), (r"\8", ["8"]), (r"\q", ["q"]), (r"[\q]", ["q"]), (r"\_\-\.\é", ["_-.é"]), (r"\a\f\n\r\t\v", ["\a\f\n\r\t\v"]),
    (r"[\b]", ["\b"]), (r"[\A]", ["A"]), (r"[\Z]", ["Z"]), (r"(a)(b)(c)(d)(e)(f)(g)(h)(i)(j)\10", ["abcdefghijj"]), (r"(a)\11", ["a\t"]), (r"(a)\1{2}", ["aaa"]),
    (r"[[a]", ["[", "a"]), (r"[a||b]", ["|"]), (r"[^\W\d_]+$", ["abc", "a1"]), (r"[\s\S]", ["\n"]),
    ("(" * 90 + "a" + ")" * 90, ["a"]), (r"(?:(?:a|b)*c)*$", ["abcbac", "abcab"]), (r"(?:(a)|b)*\1$", ["aba", "abb"]),
    (r"(?:(a)|(b))*(?(1)x|y)", ["abx", "by", "bx"]), (r"(a(b)?)+\2", ["ababb", "abab", "aba"]),
    (r"(.*\.)?(layers\.\d+\.attn\.q_proj)$", ["model.layers.0.attn.q_proj", "layers.12.attn.q_proj", "xlayers.1.attn.q_proj"]),
    (r".*\.layers.(?:[0-9]|1\d)\.(?!mlp).*", ["m.layers.3.attn", "m.layers.3.mlp"]),
]

ATOMS = ["a", "b", "c", "ab", ".", r"\.", r"\d", r"\w", r"\s", r"\W", r"\D", r"\S", "[ab]", "[^ab]", "[a-c]", r"[\d.]", "_", "1", "é", "K", "s", r"\b", r"\B", "^", "$", r"\Z", r"\A",
         r"\1", r"\2", "(?P=n)", "q_proj", "layers", "{", "}", "]", "-", "|", ",", " ", "#", r"\x61", "]", "(", ")", "[", "\\", "?", "*"]
WEIGHTS = [6] * 17 + [2] * 10 + [2, 2, 1, 2, 2] + [0.3] * (len(ATOMS) - 32)
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "*?", "+?", "??", "{1,2}?", "*+", "++", "?+", "{1,2}+"]
GROUPS = ["(", "(", "(", "(?:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P<n>", "(?i:", "(?(1)", "(?(n)", "(?s:", "(?a:", "(?x:", "(?-i:", "(?im-s:"]
TEXTS = "abcABKks1_.é\u0663 \u212a\u017f\u0131\n"


def expression(rng, depth=0):
    out = []
    for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
        if depth < 3 and rng.random() < 0.35:
            part = rng.choice(GROUPS) + "|".join(expression(rng, depth + 1) for _ in range(rng.choice([1, 1, 1, 2, 3]))) + ")"
        else:
            part = rng.choices(ATOMS, WEIGHTS)[0]
        if rng.random() < 0.35:
            part += rng.choice(REPEATS)
        out.append(part)
    text = "".join(out)
    if depth == 0 and rng.random() < 0.15:
        text = rng.choice(["(?i)", "(?s)", "(?m)", "(?a)", "(?x)", "(?is)", "(?ia)"]) + text
    if depth == 0 and rng.random() < 0.2:
        text = rng.choice([r"(.*\.)?(%s)$", r".*\.%s$"]) % text
    return text


def texts(rng):
    return ["".join(rng.choices(TEXTS, [8, 8, 4, 2, 2, 1, 1, 1, 2, 2, 4, 1, 1, 1, .5, .5, .5, .7])[0] for _ in range(rng.randrange(9))) for _ in range(6)]


def judge(expr, subjects):
    try:
        compiled = re.compile(expr)
    except (re.error, OverflowError, ValueError, RecursionError):
        return {"expr": expr, "error": True}
    return {"expr": expr, "match": [t for t in subjects if compiled.match(t)], "other": [t for t in subjects if not compiled.match(t)]}


def main():
    assert sys.version_info[:2] == (3, 11), sys.version
    if len(sys.argv) > 1:
        n, seed, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
        fixed = []
    else:
        n, seed, path, fixed = 400, 1, Path(__file__).with_name("pairs.jsonl"), FIXED
    rng = random.Random(seed)
    with path.open("w") as f:
        for expr, subjects in fixed:
            f.write(json.dumps(judge(expr, subjects)) + "\n")
        for _ in range(n):
            f.write(json.dumps(judge(expression(rng), texts(rng))) + "\n")


main()
