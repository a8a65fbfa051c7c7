"""Tensors inside PyTorch's pickles. Their sizes and strides are checked before they become views of a mapped file."""

import math
import zlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.weights import pickles
from afloc_jax.weights.pickles import Value

_DTYPES: dict[str, type[np.generic]] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}
MOST_AXES = 32  # PyTorch's tensors have fewer; NumPy's arrays may have 64

# Untyped storages: their elements are bytes.
_STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
_STORAGES |= {f"torch.storage.{name}": np.dtype(np.uint8) for name in ("UntypedStorage", "_UntypedStorage")}


class UnreadableFile(UserError):
    """A weights file that is damaged, of an unknown format, or states sizes that it does not have."""


class StorageType(pickles.Unchanging):
    """A storage class that a pickle mentions."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class Storage(pickles.Unchanging):
    """A block of elements. Its bytes are known at once (zip format) or after the pickle is read (legacy format).

    `checksum` is the CRC-32 of its bytes, by which damage is noticed when they are used; 0 if the file has none.
    """

    __slots__ = ("checksum", "count", "data", "dtype")

    def __init__(self, dtype: np.dtype, count: int, data: np.ndarray | None = None, checksum: int = 0):
        self.dtype, self.count, self.data, self.checksum = dtype, count, data, checksum

    def checked(self) -> np.ndarray:
        """The elements, whose bytes are compared with the checksum once. Raises UnreadableFile."""
        if self.data is None:
            raise UnreadableFile("a tensor's values are missing")
        if self.checksum and zlib.crc32(self.data.view(np.uint8).data) != self.checksum:
            raise UnreadableFile("the values of a tensor are damaged: their checksum differs from that in the archive")
        self.checksum = 0
        return self.data


class Tensor(pickles.Unchanging):
    """A tensor of a file, whose values are not read yet.

    Attributes:
        shape, dtype: shape and type of the array that `array` returns.
    """

    __slots__ = ("_offset", "_storage", "_strides", "dtype", "shape")

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self._storage, self._offset, self._strides = storage, offset, strides
        self.shape, self.dtype = shape, storage.dtype

    def array(self) -> np.ndarray:
        """A read-only view of the mapped file. Raises UnreadableFile if it is damaged or too small for it."""
        data = self._storage.checked()
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        last = self._offset + sum((size - 1) * stride for size, stride in zip(self.shape, self._strides, strict=True))
        if last >= len(data):
            raise UnreadableFile(f"a tensor {list(self.shape)} reaches to element {last} of a storage of {len(data)}")
        steps = tuple(stride * self.dtype.itemsize for stride in self._strides)
        return np.lib.stride_tricks.as_strided(data[self._offset :], self.shape, steps, writeable=False)


def fault_of(array: np.ndarray) -> str:
    """Why the values cannot be weights: complex, or not finite. Empty if they can."""
    if array.dtype.kind == "c":
        return "has complex values"
    with np.errstate(over="ignore", invalid="ignore"):
        # The sum is finite only if all values are; it takes one pass and no memory.
        finite = np.isfinite(np.sum(array, dtype=np.float64)) or np.isfinite(array.astype(np.float32)).all()
    return "" if finite else "has values that are NaN or infinite"


def storage_identity(identity: Value) -> tuple[np.dtype, str, int]:
    """The type, name and number of elements of a storage, from its persistent id."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise UnreadableFile("a tensor without a storage")
    kind, key, _, count = identity[1:5]
    if not isinstance(kind, StorageType):
        raise UnreadableFile(f"a storage of an unknown type ({getattr(kind, 'path', 'not even a class')})")
    if not isinstance(key, str | int) or type(count) is not int or count < 0:
        raise UnreadableFile("a storage without a name or a size")
    return kind.dtype, str(key), count


def unpickle(data: bytes, persistent: Callable[[Value], Value], file_size: int) -> Value:
    """The value of a pickle with a `Tensor` for each tensor in it.

    Args:
        data: the bytes of the pickle.
        persistent: returns the `Storage` of a persistent id.
        file_size: bytes of the file; no tensor may be larger.

    Raises:
        UserError: the pickle is malformed, or a tensor states an impossible size.
    """

    def rebuild(storage: Value, offset: Value, shape: Value, strides: Value, *_: Value) -> Tensor:
        (start,), sizes, steps = _whole_numbers((offset,)), _whole_numbers(shape), _whole_numbers(strides)
        if not isinstance(storage, Storage) or len(sizes) != len(steps):
            raise UnreadableFile("a tensor without a storage or with a wrong shape")
        claimed = math.prod(max(size, 1) for size in sizes) * storage.dtype.itemsize
        if claimed > file_size:
            raise UnreadableFile(f"a tensor {list(sizes)} claims {claimed} bytes, more than the whole file")
        # Along an axis of size 1 (or 0) the stride has no meaning, and files may hold any number.
        steps = tuple(step if size > 1 else 0 for size, step in zip(sizes, steps, strict=True))
        return Tensor(storage, start, sizes, steps)

    functions: dict[str, Callable[..., Value]] = {
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "torch.Size": lambda sizes=(): tuple(sizes),
    }
    classes: dict[str, pickles.Unchanging] = {name: StorageType(dtype) for name, dtype in _STORAGES.items()}
    return pickles.load(data, functions, classes, persistent)


def _whole_numbers(numbers: Value) -> tuple[int, ...]:
    if not isinstance(numbers, list | tuple):
        raise UnreadableFile("a tensor whose shape, strides and offset are not whole numbers")
    if len(numbers) > MOST_AXES:
        raise UnreadableFile(f"a tensor of {len(numbers)} axes")
    found = tuple(n for n in numbers if type(n) is int and 0 <= n < 1 << 63)
    if len(found) < len(numbers):
        raise UnreadableFile("a tensor whose shape, strides and offset are not whole numbers")
    return found
