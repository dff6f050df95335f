#!/usr/bin/env python3
"""Makes the files here with mlx-lm (requirements.txt), on a CPU:

    make.py            writes all files anew, and checks the truth against mlx-lm's fuse
    make.py check LORATOOL    converts adapters with the program, has mlx-lm's load_adapters load
                              the new directories, and compares the models with the truth

Each case has a base as transformers stores it, an adapter that mlx-lm's layers hold and that is saved
as its trainer saves it, and truth.safetensors: the tensors that the adapter changes, computed in
float64 by the formula of the forward pass and rounded once to the dtype of the base.
"""
import json, os, shutil, subprocess, sys, tempfile
from pathlib import Path
import numpy as np
import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

HERE = Path(__file__).resolve().parent
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=16, intermediate_size=24,
             num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4, vocab_size=20,
             max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False)
ATTENTION = {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16)}
MLP = {"gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)}
EXPERT = {"gate_proj": (8, 16), "up_proj": (8, 16), "down_proj": (16, 8)}
OF_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}

def block(i, mlp, more={}):
    p = f"model.layers.{i}."
    all = {p + f"self_attn.{m}.weight": s for m, s in ATTENTION.items()}
    all |= {p + f"mlp.{m}.weight": s for m, s in mlp.items()}
    return all | {p + n: s for n, s in more.items()} | {
        p + "input_layernorm.weight": (16,), p + "post_attention_layernorm.weight": (16,)}

def model(blocks, head=True):
    all = {"model.embed_tokens.weight": (20, 16), "model.norm.weight": (16,)}
    for b in blocks: all |= b
    return all | ({"lm_head.weight": (20, 16)} if head else {})

def experts(prefix, names):
    return {f"{prefix}experts.{e}.{names.get(n, n)}.weight": s for e in range(3) for n, s in EXPERT.items()}

CASES = {
    # name: config, shapes, dtype of the base, fine_tune_type, num_layers, lora_parameters
    "llama": (LLAMA, model([block(0, MLP), block(1, MLP)]), mx.bfloat16, "lora", 1,
              dict(rank=4, dropout=0.0, scale=20.0)),
    "dora": (LLAMA, model([block(0, MLP), block(1, MLP)]), mx.float32, "dora", 2,
             dict(rank=2, dropout=0.05, scale=10.0, keys=["self_attn.q_proj", "self_attn.v_proj"])),
    "gemma": (LLAMA | dict(model_type="gemma", architectures=["GemmaForCausalLM"], tie_word_embeddings=True),
              model([block(0, MLP), block(1, MLP)], head=False), mx.float16, "lora", 16,
              dict(rank=3, dropout=0.0, scale=0.3, keys=["self_attn.o_proj", "model.embed_tokens"])),
    "qwen3_moe": (LLAMA | dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_hidden_layers=1,
                  num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8, decoder_sparse_step=1,
                  mlp_only_layers=[], norm_topk_prob=True),
                  model([block(0, {"gate": (3, 16)}, experts("mlp.", {}) | {
                      "self_attn.q_norm.weight": (4,), "self_attn.k_norm.weight": (4,)})]),
                  mx.bfloat16, "lora", -1, dict(rank=2, dropout=0.0, scale=20.0)),
    "mixtral": (LLAMA | dict(model_type="mixtral", architectures=["MixtralForCausalLM"], num_hidden_layers=1,
                intermediate_size=8, num_local_experts=3, num_experts_per_tok=2),
                model([block(0, {}, experts("block_sparse_moe.", OF_MIXTRAL) | {"block_sparse_moe.gate.weight": (3, 16)})]),
                mx.bfloat16, "lora", 1, dict(rank=3, dropout=0.0, scale=1.5)),
}

def rounded(x, dtype):
    """x in float64, rounded once to nearest even."""
    digits, least = {mx.bfloat16: (8, -133), mx.float16: (11, -24), mx.float32: (24, -149)}[dtype]
    q = np.maximum(np.frexp(x)[1] - digits, least)  # the exponent of the last digit
    return mx.array(np.ldexp(np.rint(np.ldexp(x, -q)), q).astype(np.float32)).astype(dtype)

def double(x): return np.array(x.astype(mx.float32)).astype(np.float64)

def make_base(name, config, shapes, dtype):
    rng = np.random.default_rng(len(name))
    d = HERE / name / "base"
    d.mkdir(parents=True)
    base = {n: mx.array((rng.standard_normal(s) / 4).astype(np.float32)).astype(dtype) for n, s in shapes.items()}
    mx.save_safetensors(str(d / "model.safetensors"), base, {"format": "pt"})
    names = {mx.bfloat16: "bfloat16", mx.float16: "float16", mx.float32: "float32"}
    (d / "config.json").write_text(json.dumps(config | {"torch_dtype": names[dtype]}, indent=1))
    return base

def train(name, fine_tune_type, num_layers, parameters):
    """Gives the layers of mlx-lm random factors, and saves them as its trainer does."""
    mx.random.seed(7)
    m, _ = load_model(HERE / name / "base")
    m.freeze()
    linear_to_lora_layers(m, num_layers, parameters, use_dora=fine_tune_type == "dora")
    factors = dict(tree_flatten(m.trainable_parameters()))
    for key, x in factors.items():
        factors[key] = (mx.random.normal(x.shape) / 4).astype(mx.float32)
        if key.endswith(".m"): factors[key] = x * (1 + mx.abs(factors[key]))
    m.update(tree_unflatten(list(factors.items())))
    d = HERE / name / "adapter"
    d.mkdir()
    mx.save_safetensors(str(d / "adapters.safetensors"), dict(tree_flatten(m.trainable_parameters())))
    config = dict(adapter_path="adapters", batch_size=4, fine_tune_type=fine_tune_type, iters=10,
                  learning_rate=1e-5, lora_parameters=parameters, model="made/" + name, num_layers=num_layers,
                  seed=0, train=True)
    (d / "adapter_config.json").write_text(json.dumps(config, indent=4))
    return m, {k: double(v) for k, v in factors.items()}

def formula(base, factors, scale, rename):
    """The changed tensors in float64, by LoRALinear, LoRASwitchLinear, LoRAEmbedding and DoRALinear."""
    out = {}
    for key in factors:
        if not key.endswith(".lora_a"): continue
        module = key.removesuffix(".lora_a")
        a, b, m = factors[key], factors[module + ".lora_b"], factors.get(module + ".m")
        if a.ndim == 3:
            for e in range(len(a)):
                n = rename(module, e)
                out[n] = double(base[n]) + scale * (b[e] @ a[e])
            continue
        n = module + ".weight"
        delta = a @ b if module.endswith("embed_tokens") else (a @ b).T
        out[n] = double(base[n]) + scale * delta
        if m is not None:
            out[n] *= (m / np.sqrt((out[n] ** 2).sum(1)))[:, None]
    return out

def fused(m):
    m.update_modules(tree_unflatten([(n, x.fuse()) for n, x in m.named_modules() if hasattr(x, "fuse")]))
    return dict(tree_flatten(m.parameters()))

def renaming(name):
    names = OF_MIXTRAL if name == "mixtral" else {}
    def rename(module, e):
        parent, leaf = module.rsplit(".switch_mlp.", 1)
        return f"{parent}.experts.{e}.{names.get(leaf, leaf)}.weight"
    return rename

def compare(name, weights, truth, dtype, keys):
    """Compares mlx-lm's own fuse, which rounds twice, with the truth."""
    rename = renaming(name)
    eps = {mx.bfloat16: 2**-8, mx.float16: 2**-11, mx.float32: 2**-22}[dtype]
    n = 0
    for key, x in weights.items():
        parts = {key: x}
        if ".switch_mlp." in key:
            parts = {rename(key.removesuffix(".weight"), e): x[e] for e in range(len(x))}
        for k, got in parts.items():
            if k not in truth: continue
            got, want = double(got), truth[k]
            wide = np.abs(want) + np.abs(want - double(keys[k]))  # of the sum, and of the difference
            assert (np.abs(got - want) <= 2 * eps * wide).all(), f"{name}: {k}"
            n += 1
    assert n == len(truth), f"{name}: {n} of {len(truth)}"

def stacked(base):
    """A base whose experts are stacked, as transformers 5 has them in memory."""
    all = {k: v for k, v in base.items() if ".experts." not in k}
    p = "model.layers.0.mlp.experts."
    get = lambda n: [base[f"{p}{e}.{n}.weight"] for e in range(3)]
    all[p + "gate_up_proj"] = mx.stack([mx.concatenate([g, u]) for g, u in zip(get("gate_proj"), get("up_proj"))])
    all[p + "down_proj"] = mx.stack(get("down_proj"))
    return all

def arrays():
    """npz/: archives of NumPy and of MLX, and a list of what is in them."""
    d = HERE / "npz"
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    all = dict(f4=x, f2=x.astype(np.float16), f8=x.astype(np.float64), i4=x.astype(np.int32), fortran=np.asfortranarray(x),
               scalar=np.float32(3), none=np.zeros((0, 2), np.float32), cube=np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    np.savez(d / "numpy.npz", **all)
    np.savez_compressed(d / "packed.npz", **all)
    ours = dict(f4=mx.array(x), f2=mx.array(x).astype(mx.float16), bf=mx.array(x).astype(mx.bfloat16), t=mx.array(x).T)
    mx.savez(str(d / "mlx.npz"), **ours)
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32"}
    lines = []
    for file in ["numpy.npz", "packed.npz"]:
        for key, v in all.items():
            v = np.asarray(v)
            fortran = v.ndim > 1 and v.flags.f_contiguous and not v.flags.c_contiguous
            shape = "[" + " ".join(map(str, v.shape)) + "]"
            lines.append(f"{file} {key} {names[str(v.dtype)]} {shape} {str(fortran).lower()} {v.tobytes('F' if fortran else 'C').hex()}")
    import zipfile
    for entry in zipfile.ZipFile(d / "mlx.npz").namelist():
        v = ours[entry.removesuffix(".npy")]
        kind = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}[v.dtype]
        stored = v.T if entry == "t.npy" else v
        raw = np.array(mx.contiguous(stored).view(mx.uint16 if v.itemsize == 2 else mx.uint32)).tobytes()
        lines.append(f"mlx.npz {entry.removesuffix('.npy')} {kind} [{v.shape[0]} {v.shape[1]}] {str(entry == 't.npy').lower()} {raw.hex()}")
    (d / "arrays.txt").write_text("\n".join(lines) + "\n")

def old():
    """old/: an adapter as mlx-examples wrote it in January 2024, which has no configuration."""
    d = HERE / "old"
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    mx.savez(str(d / "adapters.npz"), **mx.load(str(HERE / "llama/adapter/adapters.safetensors")))

def make():
    for name, (config, shapes, dtype, kind, layers, parameters) in CASES.items():
        shutil.rmtree(HERE / name, ignore_errors=True)
        base = make_base(name, config, shapes, dtype)
        m, factors = train(name, kind, layers, parameters)
        truth = formula(base, factors, parameters["scale"], renaming(name))
        mx.save_safetensors(str(HERE / name / "truth.safetensors"), {k: rounded(v, dtype) for k, v in truth.items()})
        again, _ = load_model(HERE / name / "base")
        load_adapters(again, str(HERE / name / "adapter"))
        compare(name, fused(again), truth, dtype, base)
        if name == "qwen3_moe":
            d = HERE / name / "stacked"
            shutil.copytree(HERE / name / "base", d)
            mx.save_safetensors(str(d / "model.safetensors"), stacked(base), {"format": "pt"})
            mx.save_safetensors(str(HERE / name / "truth-stacked.safetensors"), {
                k: v for k, v in stacked(base | {k: rounded(v, dtype) for k, v in truth.items()}).items()
                if k + ".weight" in truth or k in truth or ".experts." in k})
    arrays()
    old()

def check(loratool):
    for name, (config, shapes, dtype, kind, layers, parameters) in CASES.items():
        base = mx.load(str(HERE / name / "base/model.safetensors"))
        factors = {k: double(v) for k, v in mx.load(str(HERE / name / "adapter/adapters.safetensors")).items()}
        truth = formula(base, factors, parameters["scale"], renaming(name))
        with tempfile.TemporaryDirectory() as tmp:
            for way in ([], ["--base", str(HERE / name / "base")]):
                one, out = f"{tmp}/a{len(way)}.lora", f"{tmp}/out{len(way)}"
                subprocess.run([loratool, "convert", "-q", str(HERE / name / "adapter"), "-o", one], check=True)
                r = subprocess.run([loratool, "convert", "-q", one, "--to", "mlx", *way, "-o", out], capture_output=True, text=True)
                if r.returncode and not way and "experts" in r.stderr:
                    continue  # the name of the module of the experts needs the base
                assert r.returncode == 0, r.stderr
                m, _ = load_model(HERE / name / "base")
                load_adapters(m, out)
                compare(name, fused(m), truth, dtype, base)
                print(name, *way[:1], "as mlx-lm loads it: equal")

def check_peft(loratool):
    """Adapters of PEFT (testdata/gguf) with other scales in some layers, and with single experts."""
    for name in ["llama", "pattern", "uneven", "mixtral", "qwen2moe"]:
        d = HERE.parent / "gguf" / name
        c = json.loads((d / "peft/adapter_config.json").read_text())
        base = mx.load(str(d / "base/model.safetensors"))
        factors = mx.load(str(d / "peft/adapter_model.safetensors"))
        truth = {}
        for key, a in factors.items():
            for at, bt in [(".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")]:
                if not key.endswith(at): continue
                module = key.removesuffix(at)
                alpha = c.get("alpha_pattern", {}).get(module.rsplit(".", 1)[1], c["lora_alpha"])
                delta = alpha / c["r"] * double(factors[module + bt]) @ double(a)
                n = module.removeprefix("base_model.model.") + ".weight"
                truth[n] = double(base[n]) + (delta.T if "embedding" in at else delta)
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run([loratool, "convert", "-q", str(d / "peft"), "--to", "mlx", "--base", str(d / "base"), "-o", tmp + "/out"], check=True)
            m, _ = load_model(d / "base", strict=False)  # the bases lack the norms
            load_adapters(m, tmp + "/out")
            compare("mixtral" if name == "mixtral" else "moe", fused(m), truth, mx.bfloat16, base)
            print(name, "of PEFT, as mlx-lm loads it: equal")

if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2])
        check_peft(sys.argv[2])
    else:
        make()
