"""Parameters from a file of `torch.save`, without PyTorch.

Both forms: the zip archive, since PyTorch 1.6, and the row of pickles before. While these are read, nothing stands for
a tensor but a description that cannot be changed; arrays are made of the descriptions afterwards.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # of the older form
TYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read(path: Path | str) -> dict[str, np.ndarray]:
    """{name: array} of a file's tensors, each in its own dtype (bfloat16 as JAX's); of a checkpoint of training, those
    under "state_dict".

    Raises: OSError for a file that is not there; ValueError or what unpickling raises for one that is damaged or holds
    more than tensors, numbers and text.
    """
    found, storages = (_archive if zipfile.is_zipfile(path) else _row_of_pickles)(Path(path))
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, no tensors by name")
    found = found.get("state_dict", found)
    if not isinstance(found, dict):
        raise ValueError(f'holds a {type(found).__name__} as "state_dict", no tensors by name')
    return {name: _array(value, storages) for name, value in found.items() if isinstance(value, _Tensor)}


class _Storage(NamedTuple):
    """Values in a row: `count` of a type of TYPES, in the file under `key`."""

    key: str
    type: str
    count: int

    @property
    def dtype(self):
        return np.dtype(TYPES[self.type])


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Hands out nothing that could run or that a pickle could change: descriptions of tensors, and all else is refused.

    Attributes:
      storages: {key: what the pickle says of it}.
    """

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def persistent_load(self, pid):
        _, type_, key, _, count, *view = pid
        if any(part is not None for part in view):
            raise ValueError("a view of values, as PyTorch before 0.4 wrote them")
        if not (type_ in TYPES and isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise ValueError("values of no known kind")
        storage = _Storage(key, type_, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"values of {key} are of two kinds")
        return storage

    def find_class(self, module, name):
        if module == "torch" and name in TYPES:
            return name
        given = {  # functions made anew, as a pickle can set attributes of what it is given
            ("collections", "OrderedDict"): lambda *items: collections.OrderedDict(*items),
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in given:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not of tensors")
        return given[module, name]


def _array(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    values = storages[tensor.storage.key]
    offset, shape, strides = tensor[1:]
    if min((offset, *shape, *strides)) < 0:
        raise ValueError("a tensor that begins before its values")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(values):
        raise ValueError("a tensor that ends beyond its values")
    if math.prod(shape) > len(values):
        raise ValueError("a tensor of more than its values")
    steps = [step * values.itemsize for step in strides]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], shape, steps))


def _archive(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = [name for name in names if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError("not of torch.save: no data.pkl")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("of a big-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled[0])))
        found, storages = unpickler.load(), unpickler.storages
        return found, {key: _values(archive.read(f"{folder}data/{key}"), of) for key, of in storages.items()}


def _row_of_pickles(path):
    """Magic number, version, the writer's machine, the tensors, the keys of their values, then these, in that order."""
    with path.open("rb") as file:
        load = lambda: _Unpickler(file).load()
        if load() != MAGIC:
            raise ValueError("not of torch.save")
        load()
        machine = load()
        if not isinstance(machine, dict) or not machine.get("little_endian", True):
            raise ValueError("of a big-endian machine")
        unpickler = _Unpickler(file)
        found, storages, keys, values = unpickler.load(), unpickler.storages, load(), {}
        if sorted(keys) != sorted(storages):
            raise ValueError("the list of values is not that of the tensors")
        for key in keys:
            of = storages[key]
            left = os.fstat(file.fileno()).st_size - file.tell() - 8
            if int.from_bytes(file.read(8), "little") != of.count or of.count * of.dtype.itemsize > left:
                raise ValueError(f"values of {key} are missing")
            values[key] = _values(file.read(of.count * of.dtype.itemsize), of)
    return found, values


def _values(data, storage):
    if len(data) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"values of {storage.key} are missing")
    return np.frombuffer(data, storage.dtype)
