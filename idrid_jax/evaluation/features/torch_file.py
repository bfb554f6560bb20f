"""Parameters from a file of `torch.save`, without PyTorch.

Both forms: the zip archive, since PyTorch 1.6, and the row of pickles before. Of a pickle nothing runs but what puts
tensors together.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # of the older form
TYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read(path: Path | str) -> dict[str, np.ndarray]:
    """{name: array} of a file's tensors; of a checkpoint of training, those under "state_dict".

    Raises: ValueError or what unpickling raises for a file that is damaged or holds more than
    tensors, numbers and text.
    """
    found = (_archive if zipfile.is_zipfile(path) else _row_of_pickles)(Path(path))
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, no tensors by name")
    found = found.get("state_dict", found)
    return {name: np.array(value) for name, value in found.items() if isinstance(value, np.ndarray)}


class _Unpickler(pickle.Unpickler):
    """Hands out nothing that could run: tensors' own parts by name, and all else is refused."""

    def __init__(self, file, storage):
        super().__init__(file)
        self.persistent_load = storage

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in TYPES:
            return np.dtype(TYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not of tensors")


def _tensor(storage, offset, shape, strides, *rest):
    """A view of a storage, a flat array whose bytes may come later; strides in elements."""
    if min((offset, *shape, *strides)) < 0:
        raise ValueError("a tensor that begins before its values")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(storage):
        raise ValueError("a tensor that ends beyond its values")
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def _archive(path):
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder, kept = pickled.removesuffix("data.pkl"), {}

        def storage(pid):
            _, dtype, key, _, count = pid
            if key not in kept:
                kept[key] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
            if len(kept[key]) < count:
                raise ValueError(f"values of {key} are missing")
            return kept[key]

        return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _row_of_pickles(path):
    """Magic number, version, the writer's machine, the tensors, the keys of their values, then these, in that order."""
    kept = {}

    def storage(pid):
        _, dtype, key, _, count, view = pid
        if view is not None:
            raise ValueError("a view of values, as PyTorch before 0.4 wrote them")
        return kept.setdefault(key, np.zeros(count, dtype))

    with path.open("rb") as file:
        load = lambda: _Unpickler(file, storage).load()
        if load() != MAGIC:
            raise ValueError("not of torch.save")
        load(), load()
        found, keys = load(), load()
        for key in keys:
            values = kept[key]
            if int.from_bytes(file.read(8), "little") != len(values):
                raise ValueError(f"values of {key} are missing")
            values[:] = np.frombuffer(file.read(values.nbytes), values.dtype)
    return found
