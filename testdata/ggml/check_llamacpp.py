"""Shows that llama.cpp loads what loratool merges into GGUF bases: a tiny Llama with random weights, whose
layers llama.cpp's own quantisers store in every type that gguf-py decodes, merged with an adapter of PEFT's layout and with the same
as a GGUF file. NumPy merges the same in float64 and rounds once to the types of the output: the bytes of
the merged tensors have to be equal, and so the logits. Beside the perplexity of each output stand those of
the base, of an exact merge in F32, and of the base with the adapter that llama.cpp applies while it runs.
llama-cpp-python 0.3.36, gguf 0.19.0, numpy, safetensors.

    python check_llamacpp.py /path/to/loratool [TYPE...]

LLAMA_CPP_LIB_PATH names another directory with libllama.so and ggml's backends.
"""
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, LlamaFileType, dequantize, quantize
from llama_cpp import llama_cpp as llama
from safetensors.numpy import save_file

LORATOOL, D = sys.argv[1], tempfile.mkdtemp()
VOCAB, DIM, HEADS, KV, FF, LAYERS, TOKENS, RANK, ALPHA = 256, 256, 4, 2, 512, 2, 256, 4, 8
MODULES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down", "mlp.gate_proj": "ffn_gate"}
SHAPES = {"attn_q": (DIM, DIM), "attn_k": (DIM // HEADS * KV, DIM), "attn_v": (DIM // HEADS * KV, DIM), "attn_output": (DIM, DIM),
          "ffn_gate": (FF, DIM), "ffn_up": (FF, DIM), "ffn_down": (DIM, FF)}
rng = np.random.default_rng(7)


def write(path, tensors, kind):
    """kind is model or adapter; a tensor is an array, or its bytes and a type."""
    w = GGUFWriter(path, "llama")
    w.add_type(kind)
    if kind == "adapter":
        w.add_string("adapter.type", "lora")
        w.add_float32("adapter.lora.alpha", ALPHA)
    else:
        w.add_context_length(TOKENS)
        w.add_embedding_length(DIM)
        w.add_block_count(LAYERS)
        w.add_feed_forward_length(FF)
        w.add_head_count(HEADS)
        w.add_head_count_kv(KV)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_vocab_size(VOCAB)
        w.add_tokenizer_model("none")
        w.add_file_type(LlamaFileType.ALL_F32)
    for name, t in tensors.items():
        w.add_tensor(name, t[0], raw_dtype=t[1]) if isinstance(t, tuple) else w.add_tensor(name, t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def permuted(rows, heads):
    """Rows in the order of llama.cpp: the halves of a head become pairs."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def make():
    model = {"token_embd.weight": rng.normal(size=(VOCAB, DIM)) / 8, "output_norm.weight": np.ones(DIM), "output.weight": rng.normal(size=(VOCAB, DIM)) / 8}
    peft, lora, deltas = {}, {}, {}
    for i in range(LAYERS):
        model |= {f"blk.{i}.{n}.weight": rng.normal(size=s) / 12 for n, s in SHAPES.items()}
        model |= {f"blk.{i}.{n}.weight": np.ones(DIM) for n in ("attn_norm", "ffn_norm")}
        for module, name in MODULES.items():
            m, n = SHAPES[name]
            a, b = rng.normal(size=(RANK, n)).astype(np.float32) / 8, rng.normal(size=(m, RANK)).astype(np.float32) / 8
            key = f"base_model.model.model.layers.{i}.{module}"
            peft |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            if name in ("attn_q", "attn_k"):
                b = permuted(b, HEADS if name == "attn_q" else KV)
            target = f"blk.{i}.{name}.weight"
            lora |= {f"{target}.lora_a": a, f"{target}.lora_b": np.ascontiguousarray(b)}
            deltas[target] = ALPHA / RANK * (b.astype(np.float64) @ a.astype(np.float64))
    write(f"{D}/base-F32.gguf", {n: t.astype(np.float32) for n, t in model.items()}, "model")
    write(f"{D}/lora.gguf", lora, "adapter")
    os.makedirs(f"{D}/peft")
    save_file(peft, f"{D}/peft/adapter_model.safetensors")
    json.dump({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [m.split(".")[1] for m in MODULES]},
              open(f"{D}/peft/adapter_config.json", "w"))
    return deltas


def quantise(name):
    """Stores the matrices of the layers in a type, with an importance matrix of ones where the type needs one.
    NVFP4 has a scale beside each."""
    tensors, ones = {}, np.ones(FF, np.float32)
    for t in GGUFReader(f"{D}/base-F32.gguf").tensors:
        x = np.ascontiguousarray(t.data)
        tensors[t.name] = x.view(np.uint8), t.tensor_type
        if ".attn_norm" in t.name or ".ffn_norm" in t.name or not t.name.startswith("blk."):
            continue
        if name == "NVFP4":
            scale = np.float32(abs(x).max() / (6 * 448))
            tensors[t.name.replace(".weight", ".scale")] = np.array([scale])
            x = x / scale
        if name in ("F16", "BF16"):
            tensors[t.name] = rounded(x.astype(np.float64), Type[name]), Type[name]
            continue
        elements, size = GGML_QUANT_SIZES[Type[name]]
        blocks = np.empty((x.shape[0], x.shape[1] // elements * size), np.uint8)
        imatrix = ones.ctypes.data_as(ctypes.c_void_p) if name in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M") else None
        GGML.ggml_quantize_chunk(int(Type[name]), x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
                                 ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]), imatrix)
        tensors[t.name] = blocks, Type[name]
    write(f"{D}/base-{name}.gguf", tensors, "model")


TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
         "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"]


def logits(path, adapter=None):
    params = llama.llama_model_default_params()
    params.use_extra_bufts = False
    model = llama.llama_model_load_from_file(path.encode(), params)
    assert model, path
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max_per_seq = TOKENS
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    ctx = llama.llama_init_from_model(model, params)
    if adapter:
        a = llama.llama_adapter_lora_init(model, adapter.encode())
        assert a, adapter
        assert llama.llama_set_adapters_lora(ctx, (llama.llama_adapter_lora_p_ctypes * 1)(a), 1, (ctypes.c_float * 1)(1)) == 0
    batch = llama.llama_batch_init(TOKENS, 0, 1)
    batch.n_tokens = TOKENS
    for i, t in enumerate(SEQUENCE):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = int(t), i, 1, 0, 1
    assert llama.llama_decode(ctx, batch) == 0
    return np.ctypeslib.as_array(llama.llama_get_logits(ctx), (TOKENS, VOCAB)).astype(np.float64).copy()


def perplexity(x):
    x = x - x.max(axis=1, keepdims=True)
    log = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return math.exp(-log[np.arange(TOKENS - 1), SEQUENCE[1:]].mean())


def rounded(x, kind):
    """The bytes of float64 numbers in a type, rounded once, or the blocks of their float32."""
    if kind == Type.BF16:
        fraction, exponent = np.frexp(x)
        x = np.ldexp(np.rint(fraction * 256) / 256, exponent).astype(np.float32)
        return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if kind in (Type.F32, Type.F16):
        return x.astype(np.float32 if kind == Type.F32 else np.float16).view(np.uint8)
    return quantize(x.astype(np.float32), kind)


def merged_by_numpy(base, like):
    """Merges with NumPy, to numpy.gguf in the types of the file like, and exactly to f32.gguf. Returns how
    many merged tensors differ from those of like, of how many."""
    same, exact, different = {}, {}, 0
    got, of = ({t.name: t for t in GGUFReader(path).tensors} for path in (like, base))
    for t in of.values():
        scale = t.name.replace(".weight", ".scale")
        if t.name.endswith(".scale"):  # goes into the values of what is merged
            if t.name in got:
                merged = t.name.replace(".scale", ".weight") in DELTAS
                same[t.name] = np.array([1], np.float32) if merged else np.array(t.data)
                different += got[t.name].data.tobytes() != same[t.name].tobytes()
            continue
        x = dequantize(t.data, t.tensor_type).astype(np.float64).reshape([int(n) for n in reversed(t.shape)])
        same[t.name] = t.data.view(np.uint8), t.tensor_type
        if scale in of and scale != t.name:
            x *= float(of[scale].data[0])
        if t.name in DELTAS:
            x = x + DELTAS[t.name]
            kind = got[t.name].tensor_type
            same[t.name] = rounded(x, kind), kind
        different += got[t.name].data.tobytes() != same[t.name][0].tobytes()
        exact[t.name] = x.astype(np.float32)
    write(f"{D}/numpy.gguf", same, "model")
    write(f"{D}/f32.gguf", exact, "model")
    return different, len(same)


llama.llama_backend_init()
GGML = ctypes.CDLL(os.path.join(os.environ.get("LLAMA_CPP_LIB_PATH") or os.path.dirname(llama.__file__) + "/lib", "libggml-base.so"))
if path := os.environ.get("LLAMA_CPP_LIB_PATH"):
    load = ctypes.CDLL(os.path.join(path, "libggml.so")).ggml_backend_load_all_from_path
    load(path.encode())
QUIET = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(QUIET, ctypes.c_void_p(0))
SEQUENCE = rng.integers(VOCAB, size=TOKENS)
DELTAS = make()
print("base    adapter   flags            merged to       perplexity of: base, output, F32, run time; largest difference of logits to NumPy's")
for name in sys.argv[2:] or ["F32", *TYPES]:
    base, out = f"{D}/base-{name}.gguf", f"{D}/out.gguf"
    if name != "F32":
        quantise(name)
    for adapter, flags in (("peft", []), ("lora.gguf", []), ("peft", ["--out-dtype", "f32"]), ("peft", ["--out-dtype", "bf16"]), ("peft", ["--requantise", "--accept-loss"])):
        line = f"{name:7s} {adapter:9s} {' '.join(flags):16s}"
        run = subprocess.run([LORATOOL, "merge", base, f"{D}/{adapter}", "-o", out, "--quiet", "--force", *flags], capture_output=True, text=True)
        if run.returncode != 0:
            print(line, run.stderr.strip().splitlines()[0])
            continue
        different, of = merged_by_numpy(base, out)
        got, want = logits(out), logits(f"{D}/numpy.gguf")
        # llama.cpp applies no adapter to a gate in NVFP4
        at_run_time = math.nan if name == "NVFP4" else perplexity(logits(base, f"{D}/lora.gguf"))
        kinds = sorted({t.tensor_type.name for t in GGUFReader(out).tensors if t.name in DELTAS})
        print(f"{line} {'/'.join(kinds):8s} {perplexity(logits(base)):9.4f} {perplexity(got):9.4f} {perplexity(logits(D + '/f32.gguf')):9.4f} "
              f"{at_run_time:9.4f}   {abs(got - want).max():.2g} of {abs(want).max():.3g}; {different} of {of} tensors differ")
