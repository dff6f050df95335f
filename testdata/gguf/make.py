#!/usr/bin/env python3
"""Makes the files here with gguf-py 0.19.0 (PyPI):

    make.py types
"""
import os, sys
import numpy as np
import gguf
from gguf import GGUFReader, GGUFWriter, GGUFValueType as V

HERE = os.path.dirname(os.path.abspath(__file__))

def types():
    """types.gguf has every type of values and of tensors that gguf-py writes; types.txt is the list
    that its reader makes of the file."""
    path = f"{HERE}/types.gguf"
    w = GGUFWriter(path, "llama")
    w.add_uint8("v.u8", 200), w.add_int8("v.i8", -3), w.add_uint16("v.u16", 60000)
    w.add_int16("v.i16", -300), w.add_uint32("v.u32", 4000000000), w.add_int32("v.i32", -70000)
    w.add_float32("v.f32", 0.1), w.add_float64("v.f64", 0.1), w.add_bool("v.bool", True)
    w.add_string("v.text", "größe"), w.add_uint64("v.u64", 2**63), w.add_int64("v.i64", -2**62)
    w.add_array("v.words", ["a", "", "ß"]), w.add_array("v.numbers", [1, 2, 3])
    w.add_key_value("v.tokens", [1, 2**31], V.ARRAY, V.UINT32)
    rng = np.random.default_rng(1)
    for t, (n, size) in gguf.GGML_QUANT_SIZES.items():
        if t.name == "Q8_1":
            continue  # of computations only; gguf-py has another size for it than ggml
        raw = rng.integers(0, 256, (2, 3 * size), dtype=np.uint8)
        dtype = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8,
                 "I16": np.int16, "I32": np.int32, "I64": np.int64}.get(t.name)
        if dtype:
            w.add_tensor("t." + t.name, raw.view(dtype).reshape(2, 3))
        else:
            w.add_tensor("t." + t.name, raw, raw_dtype=t)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    names = {V.UINT8: "uint8", V.INT8: "int8", V.UINT16: "uint16", V.INT16: "int16",
             V.UINT32: "uint32", V.INT32: "int32", V.FLOAT32: "float32", V.FLOAT64: "float64",
             V.BOOL: "bool", V.STRING: "string", V.UINT64: "uint64", V.INT64: "int64",
             V.ARRAY: "array"}
    r = GGUFReader(path)
    with open(f"{HERE}/types.txt", "w") as f:
        for key, field in r.fields.items():
            if not key.startswith("GGUF."):
                print("key", key, names[field.types[0]], file=f)
        for t in r.tensors:
            raw = np.asarray(t.data).view(np.uint8)
            ints = lambda all: ",".join(str(int(x)) for x in all)
            print("tensor", t.name, t.tensor_type.name, ints(t.shape),
                  ints([t.data_offset, t.n_bytes, raw.astype(np.int64).sum()]), file=f)

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
