"""Writes the pickle fixtures: files of torch.save with their tensors in safetensors, and files that must be refused."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

sys.dont_write_bytecode = True

import numpy  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import distributed  # noqa: E402

HERE = Path(__file__).parent
MARKER = "the-pickle-was-run"


def sequence(*shape, dtype=torch.float32):
    """Distinct values that every float dtype holds."""
    n = 1
    for d in shape:
        n *= d
    return (torch.arange(n) % 101).reshape(shape).to(dtype)


# Files that are read.


def linear():
    """A state dict of torch has the attribute _metadata."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False)).state_dict()


def views():
    base = sequence(6, 8)
    return {
        "base": base,
        "rows": base[2:4],
        "tail": base.flatten()[40:],
        "one": base[5],
        "scalar": base[3, 3],
        "nothing": base[6:],
        "nothing beyond the storage": base[6:, 1:],
    }


def strided():
    base = sequence(6, 8)
    return {
        "transposed": base.t(),
        "columns": base[:, 3:5],
        "every-other": base[::2, 1::3],
        "permuted": sequence(2, 3, 4).permute(2, 0, 1),
        "expanded": sequence(3, 1).expand(3, 5),
        "overlapping": torch.as_strided(sequence(16), (4, 5), (2, 1), 1),
        "ones": sequence(1, 4, 1).permute(2, 1, 0),
        "wide": sequence(3, 30000, dtype=torch.uint8).t(),
    }


def dtypes():
    names = """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 uint16 uint32 uint64
        float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz""".split()
    raw = sequence(4 * 8, dtype=torch.uint8) + 1
    return {name: (raw.reshape(4, 8) % 2).bool() if name == "bool" else raw.clone().view(getattr(torch, name)) for name in names}


def parameters():
    plain = torch.nn.Parameter(sequence(2, 3))
    frozen = torch.nn.Parameter(sequence(3, 2), requires_grad=False)
    tagged = torch.nn.Parameter(sequence(4))
    tagged.tag = "with an attribute"
    return OrderedDict(plain=plain, frozen=frozen, tagged=tagged)


def shared():
    tied = sequence(4, 3)
    return {"embed.weight": tied, "head.weight": tied, "head.transposed": tied.t(), "own": tied.clone()}


def nested():
    return {"epoch": 3, "state_dict": linear(), "optimizer": {"state": {0: {"exp_avg": sequence(3)}}, "lr": 1e-3}}


def beside():
    return {"weight": sequence(2, 2), "epoch": 3, "loss": 0.5, "name": "müll", "big": 2**80, "negative": -70000, "flag": True, "none": None}


READ = {
    "plain": linear,
    "views": views,
    "strided": strided,
    "dtypes": dtypes,
    "parameters": parameters,
    "shared": shared,
    "nested": nested,
    "beside": beside,
    "empty": dict,
}


def flat(value):
    value = value.get("state_dict", value)
    return {name: t.detach().contiguous().clone() for name, t in value.items() if isinstance(t, torch.Tensor)}


def save(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def unchecked(value) -> bytes:
    """An archive in which torch writes 0 for every checksum."""
    torch.serialization.set_crc32_options(False)
    try:
        return save(value)
    finally:
        torch.serialization.set_crc32_options(True)


# Files that are refused.


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Stateful:
    def __getstate__(self):
        return {"x": 1}


def edit(archive: bytes, change: dict, compress=zipfile.ZIP_STORED, drop=()) -> bytes:
    """Rewrites entries of a torch archive; change maps the end of a name to new contents or to a function of the old ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", compress) as new:
        for info in old.infolist():
            content = old.read(info)
            for name, to in change.items():
                if info.filename.endswith("/" + name):
                    changed = to(content) if callable(to) else to
                    assert changed != content, name
                    content = changed
            if not any(info.filename.endswith("/" + name) for name in drop):
                new.writestr(zipfile.ZipInfo(info.filename), content, compress)
    return out.getvalue()


def swap(old: bytes, new: bytes):
    def change(content):
        assert content.count(old) == 1, (old, content)
        return content.replace(old, new)

    return change


def program(*parts: bytes) -> bytes:
    """An archive whose data.pkl is made by hand."""
    return edit(save({}), {"data.pkl": b"\x80\x02" + b"".join(parts) + b"."})


def script() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            z.writestr(zipfile.ZipInfo(name), b"\x80\x02}.")
    return out.getvalue()


def zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(zipfile.ZipInfo(name), b"hello")
    return out.getvalue()


def optimizer() -> bytes:
    weight = torch.nn.Parameter(sequence(2, 3))
    adam = torch.optim.Adam([weight])
    weight.grad = sequence(2, 3)
    adam.step()
    return save(adam.state_dict())


def refused():
    one = {"w": sequence(3, 5)}
    zip_file, legacy = save(one), save(one, _use_new_zipfile_serialization=False)
    touch = f"touch {MARKER}"
    system = Calls(os.system, touch)
    evil = Calls(eval, f"open({MARKER!r}, 'w')")
    int_ = lambda n: b"J" + struct.pack("<i", n)  # noqa: E731
    size = b"K\x03K\x05\x86"  # the shape (3, 5)
    huge = b"\x8a\x08" + struct.pack("<q", 2**62)
    yield "os-system", save({"w": sequence(2), "x": system}), ["posix.system", "nothing in it was run"]
    yield "eval", save({"x": evil, "w": sequence(2)}), ["builtin", "eval", "do not"]
    yield "eval-legacy", save(evil, _use_new_zipfile_serialization=False), ["eval"]
    yield "eval-plain", pickle.dumps(evil, 2), ["eval"]
    yield "eval-in-key", save({Calls(eval, f"open({MARKER!r}, 'w').name"): sequence(2)}), ["eval"]
    yield "getattr", save({"x": Calls(getattr, "x", "join")}), ["getattr"]
    yield "object", save({"x": Stateful()}), ["Stateful"]
    yield "instance", program(b"(i__builtin__\neval\n"), ["INST"]
    yield "newobj", program(b"ccollections\nOrderedDict\n)\x81"), ["NEWOBJ"]
    yield "extension", program(b"\x82\x01"), ["EXT1"]
    yield "unknown-opcode", program(b"\xff"), ["0xff"]
    yield "underflow", program(b"\x86"), ["stack"]
    yield "no-mark", program(b"u"), ["mark"]
    yield "call-of-a-string", program(b"X\x01\x00\x00\x00a)R"), ["called"]
    yield "memo-unset", program(b"h\x07"), ["before it is stored"]
    yield "text-4gb", program(b"X\xff\xff\xff\xff"), ["want 4,294,967,295 bytes"]
    yield "recursive", program(b"}q\x00X\x05\x00\x00\x00modelh\x00s"), ["no dictionary of tensors"]
    yield "not-utf8", program(b"X\x01\x00\x00\x00\xff"), ["UTF-8"]
    yield "storage-claim", edit(zip_file, {"data.pkl": swap(b"K\x0ftq", b"M\xff\xfftq")}), ["claims 262140 bytes", "holds 60"]
    yield "storage-claim-2-62", edit(zip_file, {"data.pkl": swap(b"K\x0ftq", huge + b"tq")}), ["more than any file"]
    yield "shape-claim", edit(zip_file, {"data.pkl": swap(size, huge + b"K\x05\x86")}), ["larger than any file"]
    yield "leaves-storage", edit(zip_file, {"data.pkl": swap(size, b"K\x04K\x05\x86")}), ["leaves its storage"]
    yield "negative-shape", edit(zip_file, {"data.pkl": swap(size, int_(-3) + b"K\x05\x86")}), ["a tensor of a storage"]
    yield "stride-overflow", edit(zip_file, {"data.pkl": swap(b"K\x05K\x01\x86", huge + b"K\x01\x86")}), ["leaves its storage"]
    yield "stride-zero", save({"w": sequence(1).expand(1 << 20, 1 << 20)}), ["times as large as the file"]
    yield "storage-missing", edit(zip_file, {}, drop=["data/0"]), ["no entry data/0"]
    yield "storage-short", edit(zip_file, {"data/0": lambda b: b[:-4]}), ["claims 60 bytes", "holds 56"]
    yield "cut", zip_file[:-30], ["zip"]
    yield "cut-in-data", zip_file[: len(zip_file) // 2], ["zip"]
    yield "cut-pickle", edit(zip_file, {"data.pkl": lambda b: b[:40]}), ["want 1 byte"]
    yield "cut-legacy", legacy[:-1], ["claims 60 bytes", "holds 59"]
    yield "cut-legacy-pickle", legacy[:150], ["want 1 byte"]
    yield "legacy-claim", legacy.replace(struct.pack("<q", 15), struct.pack("<q", 1 << 60)), ["1152921504606846976 elements"]
    yield "legacy-big-endian", legacy.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), ["big-endian"]
    yield "byteorder-big", edit(zip_file, {"byteorder": b"big"}), ["byteorder", "big"]
    yield "compressed", edit(zip_file, {}, compress=zipfile.ZIP_DEFLATED), ["compressed"]
    yield "protocol-4", save(one, pickle_protocol=4), ["protocol 4"]
    yield "list", save([sequence(2), sequence(3)]), ["a list of 2"]
    yield "tensor", save(sequence(2)), ["a tensor"]
    yield "no-tensors", save({"lr": 1e-3}), ["no dictionary of tensors"]
    yield "int-keys", save({0: sequence(2)}), ["want a string"]
    yield "tensors-beside", save({"w": sequence(2), "more": {"x": sequence(2)}}), ["more"]
    yield "numpy", save({"w": numpy.ones(2)}), ["numpy"]
    yield "complex128", save({"w": sequence(2, dtype=torch.complex128)}), ["ComplexDoubleStorage"]
    yield "conjugated", save({"w": sequence(2, dtype=torch.complex64).conj()}), ["conjugated"]
    yield "quantised", save({"w": torch.quantize_per_tensor(sequence(4), 0.1, 0, torch.qint8)}), ["torch._utils._rebuild_qtensor"]
    yield "sparse", save({"w": sequence(2, 2).to_sparse()}), ["torch._utils._rebuild_sparse_tensor"]
    yield "torchscript", script(), ["TorchScript"]
    yield "zip", zipped("hello.txt"), ["no data.pkl"]
    clip = {"layer_0": {"q_proj": {"w_lora_A": sequence(2, 4), "w_lora_B": sequence(4, 2)}}}
    yield "clip-lora", save({"weights": clip, "metadata": {"r": 2, "alpha": 1}}), ["no dictionary of tensors", "weights.layer_0.q_proj.w_lora_A"]
    yield "textual-inversion", save({"string_to_token": {"*": 265}, "string_to_param": {"*": sequence(1, 8)}}), ["string_to_param.*"]
    yield "optimizer", optimizer(), ["no dictionary of tensors"]
    yield "plain-pickle", pickle.dumps({"w": [1, 2]}, 2), ["torch.save did not write"]
    yield from refused_distributed()


def refused_distributed():
    """Parts of distributed tensors, and descriptions of them that torch does not write."""
    yield "dtensor-shard", distributed.sharded(0), ['"w" is the part', "Shard(0)", "[4 6]", "[2 6]", "full_tensor"]
    yield "dtensor-columns", distributed.sharded(1), ['"w" is the part', "Shard(1)"]
    yield "dtensor-sum", distributed.partial(), ['"w" is the part', "Partial()", "full_tensor"]
    whole = save({"w": distributed.whole()["replicated"]})
    change = lambda old, new: edit(whole, {"data.pkl": swap(old, new)})  # noqa: E731
    placement = b"ctorch.distributed.tensor.placement_types\nReplicate\n"
    yield "dtensor-placement-of-a-mesh", change(placement, b"ctorch.distributed.device_mesh\nDeviceMesh\n"), ["a placement", "DeviceMesh"]
    yield "dtensor-class", change(placement, b"ctorch.distributed.tensor.placement_types\nos\n"), ["placement_types.os", "nothing in it was run"]
    yield "dtensor-module", change(placement, b"ctorch.distributed.run\nShard\n"), ["torch.distributed.run.Shard", "nothing in it was run"]
    yield "dtensor-without-a-tensor", change(b"_local_tensor", b"_other_tensor"), ["a DTensor of None"]
    yield "dtensor-dtype", change(b"ctorch\nfloat32\n", b"ctorch\nfloat16\n"), ["float16", "F32"]
    yield "dtensor-layout", change(b"torch.strided", b"torch.stridex"), ["layout"]
    yield "dtensor-function", change(b"ctorch._utils\n_rebuild_wrapper_subclass\n", b"ctorch._utils\n_rebuild_tensor\n"), ["_rebuild_tensor", "nothing in it was run"]
    shard = placement.replace(b"Replicate", b"Shard")
    yield "dtensor-shard-without-dim", change(placement, shard), ["the dimension of a Shard is None"]
    yield "dtensor-called", program(b"ctorch.distributed.tensor\nDTensor\n)R"), ["called"]
    yield "dtensor-made", program(b"ctorch.distributed.tensor\nDTensor\n)\x81"), ["NEWOBJ"]
    mesh = b"ctorch.distributed.device_mesh\nDeviceMesh\n)\x81"
    yield "dtensor-built-twice", program(mesh + b"}b}b"), ["BUILD"]
    yield "dtensor-built-of-text", program(mesh + b"X\x01\x00\x00\x00ab"), ["BUILD"]


def check_is_run(path: Path):
    """Shows that a pickle that calls something does so where Python loads it."""
    with tempfile.TemporaryDirectory() as directory:
        code = f"import torch; torch.load({str(path.resolve())!r}, weights_only=False)"
        subprocess.run([sys.executable, "-c", code], cwd=directory, stderr=subprocess.DEVNULL)
        assert (Path(directory) / MARKER).exists(), path


# Files whose tensors do not lie by name in one dictionary.


def lists():
    """cloneofsimo's lora saves a list: up, down, up, down, …"""
    return [sequence(2, 3), sequence(3, 2, dtype=torch.float16), sequence(4, 1)]


def dictionaries():
    """CLIP-LoRA saves dictionaries in dictionaries, with plain values and numbers as keys."""
    return {"weights": {"layer_0": {"q_proj": {"w_lora_A": sequence(2, 3), "w_lora_B": sequence(3, 2)}}, 1: (sequence(5), 7)},
            "metadata": {"r": 2, "alpha": 1.0, "encoder": "both", "on": True, "none": None}}


DEEP = {"lists": lists, "dictionaries": dictionaries}


def by_path(value, path=""):
    """The tensors of a value, under the keys and positions that lead to them."""
    if isinstance(value, torch.Tensor):
        return {path: value.contiguous()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    out = {}
    for k, x in items:
        out |= by_path(x, f"{path}.{k}" if path else str(k))
    return out


def deep():
    (HERE / "deep").mkdir(exist_ok=True)
    for name, make in DEEP.items():
        (HERE / "deep" / f"{name}.bin").write_bytes(save(make()))
        (HERE / "deep" / f"{name}-legacy.bin").write_bytes(save(make(), _use_new_zipfile_serialization=False))
        save_file(by_path(make()), HERE / "deep" / f"{name}.safetensors")


def main():
    deep()
    for kind in ("read", "refuse"):
        shutil.rmtree(HERE / kind, ignore_errors=True)
        (HERE / kind).mkdir()
    for name, make in READ.items():
        value = make()
        (HERE / "read" / f"{name}.bin").write_bytes(save(value))
        # Dtypes without a storage class are not written by the older container.
        if name != "dtypes":
            (HERE / "read" / f"{name}-legacy.bin").write_bytes(save(value, _use_new_zipfile_serialization=False))
        save_file(flat(value), HERE / "read" / f"{name}.safetensors")
    whole = distributed.whole()
    (HERE / "read" / "distributed.bin").write_bytes(save(whole))
    (HERE / "read" / "distributed-legacy.bin").write_bytes(save(whole, _use_new_zipfile_serialization=False))
    save_file(distributed.local(whole), HERE / "read" / "distributed.safetensors")
    (HERE / "read" / "no-checksums.bin").write_bytes(unchecked(linear()))
    save_file(flat(linear()), HERE / "read" / "no-checksums.safetensors")
    words = {}
    for name, content, expected in refused():
        path = HERE / "refuse" / f"{name}.bin"
        path.write_bytes(content)
        words[name] = expected
        if name in ("os-system", "eval", "eval-legacy", "eval-in-key"):
            check_is_run(path)
    (HERE / "refuse" / "words.json").write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
