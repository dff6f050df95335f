"""Tensors of torch.distributed, for make.py."""

import io
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor


def mesh():
    """A mesh of this one process."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    return init_device_mesh("cpu", (1,))


def numbers(*shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def whole():
    """DTensors that are whole in one process, as FSDP2 with one process saves them."""
    one = mesh()
    return {
        "replicated": DTensor.from_local(numbers(3, 5), one, [Replicate()]),
        "sharded": DTensor.from_local(numbers(4, 3, dtype=torch.bfloat16), one, [Shard(0)]),
        "transposed": DTensor.from_local(numbers(6, 2, dtype=torch.float64).t(), one, [Shard(1)]),
        "parameter": torch.nn.Parameter(DTensor.from_local(numbers(2, 2, dtype=torch.float16), one, [Replicate()])),
        "plain": numbers(7),
    }


def local(value):
    """The same tensors without their distribution."""
    return {name: (t.to_local() if isinstance(t, DTensor) else t).detach().contiguous().clone() for name, t in value.items()}


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def partial() -> bytes:
    return saved({"w": DTensor.from_local(numbers(3, 5), mesh(), [Partial()])})


def one_of_two(rank: int, path: str, dim: int):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{path}.store")
    part = distribute_tensor(numbers(4, 6), init_device_mesh("cpu", (2,)), [Shard(dim)])
    if rank == 0:
        torch.save({"w": part}, path)
    dist.destroy_process_group()


def sharded(dim: int) -> bytes:
    """What the first of two processes holds of a tensor."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/w.bin"
        multiprocessing.spawn(one_of_two, (path, dim), nprocs=2)
        with open(path, "rb") as f:
            return f.read()
