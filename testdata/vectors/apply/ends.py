"""R123-R129: tied ends, and tensors that the base lacks (sections 12 and 13)."""
from exact import T, added, noise
from kit import adapter, bad, lin, ok, replace, rows, tensors_of

EMBED, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q.weight"
HEADLESS = tensors_of({EMBED: ("F32", (5, 4)), Q: ("F32", (4, 6))})
WITH_HEAD = HEADLESS | tensors_of({HEAD: ("F32", (5, 4))})
TIE, CLASSES = "tie_word_embeddings", "architectures"
LM = {CLASSES: ["LlamaForCausalLM"], "model_type": "llama"}
TIED, UNTIED = LM | {TIE: True}, LM | {TIE: False}
UNTIE, FOLD = ({"config": TIED, "answers": "tied=" + a} for a in ("untie", "fold"))
GROW = {"answers": "grow-vocabulary"}
emb, head = lin("model.embed_tokens", 4, 5, kind="embedding"), lin("lm_head", 5, 4)
on_embedding, on_head = adapter(emb), adapter(head)

# --- The table of 12.1: a change of the embedding is refused where the base is tied
TABLE = (
    ("no-config", None, False, False), ("no-config-head", None, True, False),
    ("trunk", {CLASSES: ["LlamaModel"], TIE: True}, False, False),
    ("classifier", {CLASSES: ["LlamaForSequenceClassification"], TIE: True},
     False, False),
    ("encoder", {CLASSES: ["T5EncoderModel"], TIE: True}, False, False),
    ("true", TIED, False, True), ("true-head", TIED, True, True),
    ("true-no-class", {TIE: True}, False, True),
    ("two-classes", {CLASSES: ["LlamaModel", "LlamaForCausalLM"], TIE: True},
     False, True),
    ("of-text-config", LM | {"text_config": {TIE: True}}, True, True),
    ("false-but-text-config", UNTIED | {"text_config": {TIE: True}}, False, True),
    ("false-but-text-config-head", UNTIED | {"text_config": {TIE: True}}, True, False),
    ("false", UNTIED, False, False), ("false-head", UNTIED, True, False),
    ("default-head", LM | {"model_type": "gpt2"}, True, False), ("missing-head", LM, True, False),
    ("missing", LM, False, True), ("default-no-class", {"model_type": "gpt2"}, False, True),
    ("no-default-no-class", {"model_type": "llama"}, False, False),
    ("lfm2", LM | {"model_type": "lfm2_moe", "tie_embedding": True, TIE: False}, True, True),
    ("tie_embedding-of-llama", UNTIED | {"tie_embedding": True}, True, False))
for name, config, with_head, tied in TABLE:
    base = WITH_HEAD if with_head else HEADLESS
    if tied:
        bad("r123-" + name, base, on_embedding, config=config)
    else:
        ok("r123-" + name, base, on_embedding, {EMBED: emb.d.t}, config=config)
bad("r123-head", WITH_HEAD, on_head, config=TIED)
whole = noise("whole", "F32", (5, 4))
bad("r123-replace", HEADLESS, adapter(replace(EMBED, whole)), config=TIED)
bad("r123-replace-and-rows", HEADLESS, adapter(replace(EMBED, whole), rows(EMBED, [2], noise(
    "row", "F32", (1, 4)))), config=TIED)
bad("r123-embedding-unknown", tensors_of({"a.embed_tokens.weight": ("F32", (5, 4)),
                                          "b.embed_tokens.weight": ("F32", (5, 4))}),
    adapter(*(lin(x + ".embed_tokens", 4, 5, kind="embedding") for x in "ab")), config=TIED)
row = noise("row", "F32", (1, 4))


def with_row(t, i=2):
    return T(t.dtype, t.shape, t.bits[:4 * i] + row.bits + t.bits[4 * i + 4:])


ok("r123-weight-tying", HEADLESS, adapter(emb, requires=[("weight-tying", "ensure_weight_tying")]),
   {EMBED: emb.d.t}, config=TIED)
ok("r123-rows", HEADLESS, adapter(rows(EMBED, [2], row)), {EMBED: with_row(HEADLESS[EMBED])},
   config=TIED)
q = lin("model.layers.0.q", 4, 6)
ok("r123-other-tensor", HEADLESS, adapter(q), {Q: q.d}, config=TIED)

# --- R124: copies
copies = adapter(replace(EMBED, whole), replace(HEAD, whole))
ok("r124-copy-left-out", HEADLESS, copies, {EMBED: whole}, config=TIED)
ok("r124-not-with-untie", HEADLESS, copies, {EMBED: whole, HEAD: whole}, **UNTIE)
bad("r88-copy-of-uncertain-tie", HEADLESS, copies, config=UNTIED)
bad("r88-copy-with-other-bytes", HEADLESS, adapter(replace(EMBED, whole), replace(HEAD, noise(
    "other", "F32", (5, 4)))), "R123", config=TIED)
bad("r88-copy-of-other-dtype", HEADLESS, adapter(replace(EMBED, whole),
                                                 replace(HEAD, whole.to("BF16"))),
    "R123", config=TIED)

# A module that PEFT saves under two names, with a bias
PROJ = HEADLESS | tensors_of({"model.proj.weight": ("F32", (3, 4)),
                              "model.proj.bias": ("F32", (3,))})
pw, pb = noise("pw", "F32", (3, 4)), noise("pb", "F32", (3,))
pair = [replace("model.proj.weight", pw), replace("model.proj.bias", pb)]
copy = [replace("model.copy.weight", pw), replace("model.copy.bias", pb)]
ok("r124-bias", PROJ, adapter(*pair, *copy), {"model.proj.weight": pw, "model.proj.bias": pb},
   config=TIED)
bad("r88-copy-of-a-bias-alone", PROJ, adapter(*pair, copy[1]), config=TIED)

# --- Untie and fold
embedding = HEADLESS[EMBED]
ok("r126-embedding", HEADLESS, on_embedding, {EMBED: emb.d.t, HEAD: embedding}, **UNTIE)
ok("untie-head", HEADLESS, on_head, {HEAD: added(embedding, head.d)}, **UNTIE)
ok("untie-both", HEADLESS, adapter(emb, head), {EMBED: emb.d.t, HEAD: added(embedding, head.d)},
   **UNTIE)
ok("untie-stored-head", WITH_HEAD, on_head, {HEAD: added(embedding, head.d)}, **UNTIE)
named, q_too = lin("base_model.model.output", 5, 4), lin("base_model.model.model.layers.0.q", 4, 6)
ok("untie-by-the-name-of-the-adapter", HEADLESS, adapter(named, q_too), **UNTIE,
   want={Q: q_too.d, "output.weight": added(embedding, named.d)})
ok("r125-embedding", HEADLESS, on_embedding, {EMBED: emb.d.t}, **FOLD)
ok("r125-head", HEADLESS, on_head, {EMBED: head.d}, **FOLD)
ok("r125-stored-head", WITH_HEAD, on_head, {EMBED: head.d, HEAD: head.d}, **FOLD)
ok("r125-equal-replaces", HEADLESS, copies, {EMBED: whole}, **FOLD)
ok("r125-equal-replaces-stored", WITH_HEAD, copies, {EMBED: whole, HEAD: whole}, **FOLD)
ok("r125-equal-rows", HEADLESS, adapter(rows(EMBED, [2], row), rows(HEAD, [2], row)),
   {EMBED: with_row(embedding)}, **FOLD)
ok("r125-equal-replaces-and-a-layer", HEADLESS,
   adapter(replace(EMBED, whole), replace(HEAD, whole), q), {EMBED: whole, Q: q.d}, **FOLD)
bad("r125-terms-and-replace", HEADLESS, adapter(head, replace(EMBED, whole)), **FOLD)
ok("r125-two-adapters", HEADLESS, [on_embedding, on_head], {EMBED: emb.d.t + head.d}, **FOLD)
bad("r125-terms", HEADLESS, adapter(emb, head), "R92", **FOLD)
bad("r125-other-rows", HEADLESS, adapter(rows(EMBED, [2], row), rows(HEAD, [3], row)), "R113",
    **FOLD)
bad("r125-replace-and-terms", HEADLESS, adapter(emb, replace(HEAD, whole)), **FOLD)
bad("r125-other-replace", WITH_HEAD, adapter(replace(EMBED, whole), replace(HEAD, noise(
    "other", "F32", (5, 4)))), "R113", **FOLD)

SHARED = tensors_of({"shared.weight": ("F32", (5, 4)), "decoder.block.0.q.weight": ("F32", (4, 6))})
on_shared = adapter(lin("shared", 4, 5, kind="embedding"))
for model in ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop"):
    bad("r126-" + model, SHARED, on_shared, answers="tied=untie", config={
        "model_type": model, CLASSES: ["T5ForConditionalGeneration"], TIE: True})
BERT = tensors_of({"bert.embeddings.word_embeddings.weight": ("F32", (5, 4))})
on_bert = lin("bert.embeddings.word_embeddings", 4, 5, kind="embedding")
bad("r126-bert", BERT, adapter(on_bert), answers="tied=untie", config={
    "model_type": "bert", CLASSES: ["BertForMaskedLM"], TIE: True})
# case; model type; the embedding's module; the name of the head
for name, model, module, to in (
        ("whisper", "whisper", "model.decoder.embed_tokens", "proj_out"),
        ("git", "git", "git.embeddings.word_embeddings", "output"),
        ("biogpt", "biogpt", "biogpt.embed_tokens", "output_projection"),
        ("prefix", "llama", "text.model.embed_tokens", "text.lm_head"),
        ("gpt2", "gpt2", "transformer.wte", "lm_head")):
    base, x = tensors_of({module + ".weight": ("F16", (5, 4))}), lin(module, 4, 5, kind="embedding")
    ok("r126-" + name, base, adapter(x), answers="tied=untie", want={
        module + ".weight": x.d.t, to + ".weight": base[module + ".weight"]},
       config=LM | {"model_type": model, TIE: True})
for answer in ("untie", "fold"):
    bad("r127-untied-" + answer, WITH_HEAD, on_embedding, config=UNTIED, answers="tied=" + answer)
    bad("r127-classifier-" + answer, HEADLESS, on_embedding, answers="tied=" + answer,
        config=TIED | {CLASSES: ["LlamaForSequenceClassification"]})
    bad("r127-no-embedding-" + answer, {Q: ("F32", (4, 6))}, adapter(q), config=TIED,
        answers="tied=" + answer)
    ok("r127-tied-" + answer, HEADLESS, adapter(q), config=TIED, answers="tied=" + answer,
       want={Q: q.d} | ({HEAD: embedding} if answer == "untie" else {}))

# An uncertain tie is enough for an answer.
for name, config in (("no-config", None), ("trunk", {CLASSES: ["LlamaModel"], TIE: True})):
    ok(f"r127-{name}-untie", HEADLESS, on_head, {HEAD: added(embedding, head.d)}, config=config,
       answers="tied=untie")
    ok(f"r127-{name}-fold", HEADLESS, on_head, {EMBED: head.d}, config=config, answers="tied=fold")
ok("r127-false-untie", HEADLESS, on_head, {HEAD: added(embedding, head.d)}, config=UNTIED,
   answers="tied=untie")
ok("r127-default-head-untie", WITH_HEAD, on_head, {HEAD: added(embedding, head.d)},
   answers="tied=untie", config=LM | {"model_type": "gpt2"})

# --- 12.1: which tensor is the embedding shows in the head that untie makes
# case; the base; vocab_size; the layer of the adapter, or None; the embedding
for name, base, vocabulary, layer, found in (
        ("sized", {"model.tokens.weight": ("F32", (9, 4)), "model.other.weight": ("F32", (4, 4))},
         9, None, "model.tokens.weight"),
        ("two-named-one-shared", {"a.shared.weight": ("F32", (5, 4)),
                                  "a.encoder.embed_tokens.weight":
                                  ("F32", (5, 4))}, 0, None, "a.shared.weight"),
        ("named-before-sized", {"model.embed_tokens.weight": ("F32", (5, 4)),
                                "model.tokens.weight": ("F32", (9, 4))}, 9, None,
                                "model.embed_tokens.weight"),
        ("named-and-looked-up", {"a.embed_tokens.weight": ("F32", (5, 4)), "b.embed_tokens.weight":
                                 ("F32", (5, 4))}, 0, "b.embed_tokens", "b.embed_tokens.weight"),
        ("fitting", {"model.tokens.weight": ("F32", (9, 4)),
                     "m.embed_positions.weight": ("F32", (9, 4))},
         0, "lm_head", "model.tokens.weight"),
        ("looked-up", {"m.tokens.weight": ("F32", (9, 4)),
                       "m.embed_positions.weight": ("F32", (9, 4))}, 0,
         "m.tokens", "m.tokens.weight")):
    base = tensors_of(base | {Q: ("F32", (4, 6))})
    parts, want = [q], {Q: q.d, HEAD: base[found]}
    if layer == "lm_head":
        parts.append(lin(layer, 9, 4))
        want[HEAD] = added(base[found], parts[1].d)
    elif layer:
        parts.append(lin(layer, 4, base[layer + ".weight"].shape[0], kind="embedding"))
        want[found] = parts[1].d.t
    config = TIED | ({"vocab_size": vocabulary} if vocabulary else {})
    ok("embedding-" + name, base, adapter(*parts), want, config=config, answers="tied=untie")

bad("r127-looked-up-beside-two-named", tensors_of({
    "a.embed_tokens.weight": ("F32", (5, 4)), "b.embed_tokens.weight": ("F32", (5, 4)),
    "m.tokens.weight": ("F32", (9, 4))}), adapter(lin("m.tokens", 4, 9, kind="embedding")), **UNTIE)

# Where the base has a tensor of the embedding's shape, that is its head, and nothing is tied by LM.
for name, module, tied in (("a-head-by-shape", "model.out", False),
                           ("a-lookup-table", "model.wpe", True),
                           ("embed-in-its-name", "model.embedded", True),
                           ("a-number-in-its-path", "model.layers.1.out", True)):
    base = HEADLESS | tensors_of({module + ".weight": ("F32", (5, 4))})
    if tied:
        bad("r123-" + name, base, on_embedding, config=LM)
    else:
        ok("r123-" + name, base, on_embedding, {EMBED: emb.d.t}, config=LM)

# --- 13: grow-vocabulary
GROWN = {n: noise("grown" + n, "F32", (7, 4)) for n in (EMBED, HEAD)}
both_grow = adapter(*(replace(n, t) for n, t in GROWN.items()))
GROWN_PREFIXED = adapter(*(replace("base_model.model." + n, t) for n, t in GROWN.items()))
one_grows = adapter(replace(EMBED, GROWN[EMBED]))
ok("r128-both", WITH_HEAD, both_grow, GROWN, config=UNTIED, **GROW)
ok("r128-no-head", HEADLESS, one_grows, {EMBED: GROWN[EMBED]}, **GROW)
half = tensors_of({EMBED: ("BF16", (5, 4)), HEAD: ("BF16", (5, 4))})
ok("r128-keeps-the-dtype", half, both_grow, {n: t.to("BF16") for n, t in GROWN.items()},
   config=UNTIED, **GROW)
ok("r128-prefix", WITH_HEAD, GROWN_PREFIXED, GROWN, config=UNTIED, **GROW)
ok("r128-copy-of-tied", HEADLESS, adapter(*(replace(n, GROWN[EMBED]) for n in GROWN)),
   {EMBED: GROWN[EMBED]}, config=TIED, **GROW)
equal_grow = adapter(*(replace(n, GROWN[EMBED]) for n in GROWN))
ok("r125-grown-stored", WITH_HEAD, equal_grow, dict.fromkeys(GROWN, GROWN[EMBED]), config=TIED,
   answers="tied=fold grow-vocabulary")
bad("r128-head-does-not-grow", WITH_HEAD, one_grows, config=UNTIED, **GROW)
bad("r128-another-like-one", HEADLESS | tensors_of({"model.wte.weight": ("F32", (5, 3))}),
    one_grows, **GROW)
bad("r114-not-without-the-answer", WITH_HEAD, both_grow, config=UNTIED)
bad("r114-shrinks", WITH_HEAD, adapter(*(replace(n, noise(n, "F32", (3, 4))) for n in GROWN)),
    config=UNTIED, **GROW)
bad("r114-grows-another", WITH_HEAD, adapter(replace(Q, noise("q", "F32", (5, 6)))), config=UNTIED,
    **GROW)

# --- add-tensors
TRUNK = tensors_of({"layers.0.q.weight": ("BF16", (4, 6)), "layers.0.k.weight": ("BF16", (4, 6)),
                    "norm.weight": ("F32", (4,)), "embed_tokens.weight": ("BF16", (5, 4))})
CONFIG = {"model_type": "llama", CLASSES: ["LlamaModel"]}
add = {"answers": "add-tensors"}
score, score_bias = noise("score", "F32", (2, 4)), noise("score.bias", "F32", (2,))
FULL = {("model." + n): t for n, t in TRUNK.items()}
qf = lin("model.layers.0.q", 4, 6)
ok("r129-as-it-is", FULL, adapter(qf, replace("score.weight", score)), config=CONFIG, **add,
   want={"model.layers.0.q.weight": qf.d, "score.weight": score.to("BF16")})
ok("r129-without-peft-s-prefix", FULL, adapter(
    lin("base_model.model.model.layers.0.q", 4, 6), replace("base_model.model.score.weight", score),
    replace("base_model.model.score.bias", score_bias)), config=CONFIG, **add,
   want={"model.layers.0.q.weight": lin("base_model.model.model.layers.0.q", 4, 6).d,
         "score.weight": score.to("BF16"), "score.bias": score_bias.to("BF16")})
ok("r129-base-gets-the-prefix", TRUNK, adapter(qf, replace("score.weight", score)), config=CONFIG,
   **add, without=list(TRUNK),
   want=FULL | {"model.layers.0.q.weight": added(FULL["model.layers.0.q.weight"], qf.d),
                                     "score.weight": score.to("BF16")})
LISTED = TRUNK | tensors_of({"lm_head.weight": ("BF16", (5, 4)), "score.weight": ("BF16", (3, 4))})
ok("r129-reshaped-with-prefix", LISTED, adapter(qf, replace("score.weight", score)),
   config={"model_type": "llama", CLASSES: ["LlamaForSequenceClassification"]}, **add,
   without=list(TRUNK),
   want=FULL | {"model.layers.0.q.weight": added(FULL["model.layers.0.q.weight"], qf.d),
                                     "score.weight": score.to("BF16")})
OTHER_DTYPE = LISTED | tensors_of({"score.weight": ("F32", (3, 4))})
ok("r129-reshaped-with-prefix-keeps-the-dtype", OTHER_DTYPE,
   adapter(qf, replace("score.weight", score)),
   config=CONFIG, **add, without=list(TRUNK),
   want=FULL | {"model.layers.0.q.weight": added(FULL["model.layers.0.q.weight"], qf.d),
                "score.weight": score})
bad("r114-an-end-is-not-reshaped", FULL, adapter(qf, replace("model.embed_tokens.weight", noise(
    "e", "F32", (7, 4)))), config=CONFIG, **add)
RESHAPED = FULL | tensors_of({"score.weight": ("F16", (3, 4))})
ok("r129-reshaped", RESHAPED, adapter(qf, replace("score.weight", score)), config=CONFIG, **add,
   want={"model.layers.0.q.weight": qf.d, "score.weight": score.to("F16")})
bad("r114-other-classes", RESHAPED, adapter(qf, replace("score.weight", score)), config=CONFIG)
bad("r88-not-without-the-answer", FULL, adapter(qf, replace("score.weight", score)), config=CONFIG)
# Heads keep their names beside a trunk that gets a prefix: appendix B has their first segments.
BESIDE = TRUNK | tensors_of({"score.weight": ("BF16", (3, 4)),
                             "pre_classifier.weight": ("BF16", (4, 4)),
                             "norm2.weight": ("BF16", (4,))})
for name, config in (("no-config", None), ("config", CONFIG)):
    ok("r129-heads-beside-the-trunk-" + name, BESIDE, adapter(qf, replace("score.weight", score)),
       **add,
       config=config, without=[*TRUNK, "norm2.weight"], want={
           "model." + n: t for n, t in BESIDE.items()
           if n.split(".")[0] not in ("score", "pre_classifier")} | {
           "model.layers.0.q.weight": added(FULL["model.layers.0.q.weight"], qf.d),
           "score.weight": score.to("BF16")})
OTHER = {("body." + n): t for n, t in TRUNK.items()}
put = lin("base_model.model.layers.0.q", 4, 6)
ok("r129-another-prefix-is-put", OTHER,
   adapter(put, replace("base_model.model.score.weight", score)),
   config=CONFIG, **add, want={"body.layers.0.q.weight": put.d,
                               "body.score.weight": score.to("BF16")})
equal = tensors_of({"model.layers.0.q.weight": ("F32", (4, 6)),
                    "model.layers.0.k.weight": ("F16", (4, 6))})
ok("r129-first-of-equal-dtypes", equal, adapter(qf, replace("score.weight", score)), **add,
   want={"model.layers.0.q.weight": qf.d, "score.weight": score.to("F16")})
ok("r129-of-a-new-module", FULL,
   adapter(qf, replace("model.pooler.weight", noise("p", "F64", (4, 4)))),
   config=CONFIG, **add, want={"model.layers.0.q.weight": qf.d,
                               "model.pooler.weight": noise("p", "F64", (4, 4)).to("BF16")})
for name, target, t in (
        ("input-embedding", "model.wte.weight", noise("t", "F32", (5, 4))),
        ("head-of-uncertain-tie", "lm_head.weight", noise("t", "F32", (5, 4))),
        ("i64", "score.steps", noise("t", "I64", (2,))),
        ("f8", "score.weight", noise("t", "F8_E4M3", (2, 4))),
        ("module-with-a-weight", "model.layers.0.q.gate", noise("t", "F32", (4,))),
        ("bias-of-a-weight", "model.layers.0.k.bias", noise("t", "F32", (4,)))):
    bad("r129-" + name, FULL, adapter(qf, replace(target, t)), config=CONFIG | {TIE: True},
        **add)
k = noise("k", "BF16", (4, 6))
ok("r129-module-with-a-weight-that-is-replaced", FULL, adapter(
    qf, replace("model.layers.0.k.bias", noise("t", "F32", (4,))),
    replace("model.layers.0.k.weight", k)),
   config=CONFIG, **add, want={"model.layers.0.q.weight": qf.d, "model.layers.0.k.weight": k,
                               "model.layers.0.k.bias": noise("t", "F32", (4,)).to("BF16")})
