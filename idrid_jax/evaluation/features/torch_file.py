"""Read the tensors of a file that `torch.save` wrote, without PyTorch and without executing what its pickle holds.

Both formats are read: the zip archive (since PyTorch 1.6) and the sequence of pickles before it. Unpickling creates
only immutable descriptions of tensors; arrays are built from these and the raw bytes afterwards.
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

MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Return {name: array} of the file's tensors in their own dtypes (bfloat16 as JAX's).

    Of a training checkpoint, the tensors under "state_dict".
    Raises: OSError for a missing file; ValueError, or an error of unpickling, for a file that is damaged or holds
      anything other than tensors, numbers and text.
    """
    content, storages = (_read_archive if zipfile.is_zipfile(path) else _read_pickles)(Path(path))
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not tensors by name")
    return {name: _array(value, storages) for name, value in content.items() if isinstance(value, _Tensor)}


class _Storage(NamedTuple):
    """A flat sequence of `count` values of a type in DTYPES, which the file holds under `key`."""

    key: str
    type: str
    count: int

    @property
    def dtype(self):
        return np.dtype(DTYPES[self.type])


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """An unpickler that creates descriptions of tensors and plain Python values, and refuses every other class.

    Attributes:
      storages: {key: _Storage} that the pickle refers to.
    """

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def persistent_load(self, pid):
        _, type_, key, _, count, *view = pid
        if any(part is not None for part in view):
            raise ValueError("a view of a storage, as PyTorch before 0.4 wrote it")
        if not (type_ in DTYPES and isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise ValueError("a storage of unknown type")
        storage = _Storage(key, type_, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} has two types or sizes")
        return storage

    def find_class(self, module, name):
        if module == "torch" and name in DTYPES:
            return name
        # new functions at each call: a pickle can set attributes of the objects it receives
        allowed = {
            ("collections", "OrderedDict"): lambda *items: collections.OrderedDict(*items),
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not part of a tensor")
        return allowed[module, name]


def _array(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Build the array of a description; raise ValueError if it reaches outside its storage."""
    values = storages[tensor.storage.key]
    offset, shape, strides = tensor[1:]
    if min((offset, *shape, *strides)) < 0:
        raise ValueError("a tensor with a negative offset, shape or stride")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(values):
        raise ValueError("a tensor that ends beyond its storage")
    if math.prod(shape) > len(values):
        raise ValueError("a tensor with more values than its storage")
    byte_strides = [stride * values.itemsize for stride in strides]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], shape, byte_strides))


def _read_archive(path):
    """Return the unpickled content and the values of each storage of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("not written by torch.save: no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        content, storages = unpickler.load(), unpickler.storages
        return content, {key: _values(archive.read(f"{folder}data/{key}"), s) for key, s in storages.items()}


def _read_pickles(path):
    """Return the same of the older format: magic number, version, machine, content, storage keys, then their values."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError("not written by torch.save")
        _Unpickler(file).load()
        machine = _Unpickler(file).load()
        if not isinstance(machine, dict) or not machine.get("little_endian", True):
            raise ValueError("written on a big-endian machine")
        unpickler = _Unpickler(file)
        content, storages, keys = unpickler.load(), unpickler.storages, _Unpickler(file).load()
        if sorted(keys) != sorted(storages):
            raise ValueError("the list of storages differs from those that the tensors use")
        values = {}
        for key in keys:
            storage = storages[key]
            size = storage.count * storage.dtype.itemsize
            available = os.fstat(file.fileno()).st_size - file.tell() - 8
            if int.from_bytes(file.read(8), "little") != storage.count or size > available:
                raise ValueError(f"storage {key} is incomplete")
            values[key] = _values(file.read(size), storage)
    return content, values


def _values(data, storage):
    if len(data) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} is incomplete")
    return np.frombuffer(data, storage.dtype)
