"""PyTorch's files (.ckpt, .pth, .pt, .bin; both formats) and .safetensors as NumPy arrays, without PyTorch.

Tensors are views of the memory-mapped file, so unused ones, such as optimiser states, are never read. No code in a file
is executed (`afloc_jax.weights.pickles`). Archives are not unpacked, so names inside them cannot become paths. Sizes
that a file states are checked against its true size before memory is allocated.
"""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from typing import NoReturn

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, check_regular
from afloc_jax.weights import pickles
from afloc_jax.weights.pickles import Value
from afloc_jax.weights.tensors import MOST_AXES, Storage, Tensor, UnreadableFile, storage_identity, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file in the format before PyTorch 1.6
_LEGACY_PROTOCOL = 1001
_LARGEST_DIRECTORY = 1 << 22  # bytes of the list of members of a zip archive; a checkpoint has 100 a tensor
_LARGEST_HEADER = 1 << 22  # bytes of the header of a .safetensors file; it has 100 a tensor
_LONGEST_LINE = 65536  # bytes of a name in a pickle
_SMALLEST_HEADER = 30  # bytes of a zip member's local header without its name and extra field


def read_file(path: AnyPath) -> Value:
    """The contents of a weights file: nested dicts, lists and plain values.

    Each tensor is a `Tensor`, any other object a `pickles.Stub`. A .safetensors file gives a flat dict of tensors.

    Raises:
        UnreadableFile: the file is missing, damaged, of an unknown format, or states sizes that it does not have. The
            message names the file and says what to do.
    """
    try:
        check_regular(path)  # reading a pipe would wait for ever
        with open(path, "rb") as file:
            start = file.read(16)
        if not start:
            raise UnreadableFile("it is empty")
        mapped = np.memmap(path, np.uint8, mode="r")
        if start.startswith(b"PK"):
            return _read_zip(path, mapped)
        if start[8:9] == b"{":
            return {name: tensor for name, tensor in read_safetensors(path).items()}  # noqa: C416 (a dict of any value)
        if start.startswith(b"\x80"):
            return _read_legacy(mapped)
        raise UnreadableFile("neither a PyTorch file (.ckpt, .pth, .pt, .bin) nor a .safetensors one")
    except UserError as error:
        raise UnreadableFile(f"{path}: {error}; get the file again from where it was published") from None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise UnreadableFile(f"{path}: not readable ({_reason(error)}); give a whole weights file") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# The format since PyTorch 1.6: an uncompressed zip archive of one pickle and one member per storage


def _read_zip(path: AnyPath, mapped: np.ndarray) -> Value:
    members, checksums = _members(path, mapped)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise UnreadableFile("a zip archive, but not one that torch.save wrote (it has no data.pkl)")
    root = roots[0]
    if f"{root}/constants.pkl" in members:
        raise UnreadableFile("a TorchScript program, not weights; save the state_dict() of the model instead")
    if members.get(f"{root}/byteorder", np.zeros(0, np.uint8)).tobytes().strip() == b"big":
        raise UnreadableFile("written on a big-endian machine, which is not supported; save it on another")
    storages: dict[str, Storage] = {}

    def persistent(identity: Value) -> Storage:
        dtype, key, count = storage_identity(identity)
        if key not in storages:
            block = members.get(f"{root}/data/{key}")
            if block is None:
                raise UnreadableFile(f"the values of storage {key!r} are missing")
            if len(block) != count * dtype.itemsize:
                raise UnreadableFile(
                    f"storage {key!r} claims {count} elements of {dtype}, {count * dtype.itemsize} bytes, and has "
                    f"{len(block)} bytes"
                )
            storages[key] = Storage(dtype, count, block.view(dtype), checksums[f"{root}/data/{key}"])
        return storages[key]

    program = members[f"{root}/data.pkl"]
    if len(program) > pickles.LARGEST_PICKLE:
        raise UnreadableFile(f"its pickle has {len(program):,} bytes, more than weights need")
    return unpickle(program.tobytes(), persistent, len(mapped))


class _Bounded(io.FileIO):
    """A file of which at most `_LARGEST_DIRECTORY` bytes are read at once: the list of members is one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _LARGEST_DIRECTORY:
            raise UnreadableFile(f"a zip archive whose list of members has more than {_LARGEST_DIRECTORY:,} bytes")
        return super().read(size)


def _members(path: AnyPath, mapped: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Views of the bytes of all members by name, and their CRC-32. Names are used as keys, never as paths."""
    with _Bounded(os.fspath(path)) as file, zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.filename.endswith("/")]  # is_dir fails without a name
    members: dict[str, np.ndarray] = {}
    end_of_last = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise UnreadableFile(f"its member {info.filename!r} is compressed or encrypted, as torch.save never does")
        header = mapped[info.header_offset : info.header_offset + _SMALLEST_HEADER].tobytes()
        if len(header) < _SMALLEST_HEADER or not header.startswith(b"PK\x03\x04"):
            raise UnreadableFile(f"its member {info.filename!r} is damaged")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + _SMALLEST_HEADER + name_length + extra_length
        if info.filename in members or info.header_offset < end_of_last or start + info.file_size > len(mapped):
            raise UnreadableFile(f"its member {info.filename!r} lies over another one, or beyond the end of the file")
        end_of_last = start + info.file_size
        members[info.filename] = mapped[start:end_of_last]
    return members, {info.filename: info.CRC for info in infos}


# The format before PyTorch 1.6: several pickles in a row, then the bytes of the storages


def _read_legacy(mapped: np.ndarray) -> Value:
    # A damaged length cannot allocate memory: reads end at the end of the map.
    file = _MappedFile(mapped)
    if _next_pickle(file, None) != _LEGACY_MAGIC or _next_pickle(file, None) != _LEGACY_PROTOCOL:
        raise UnreadableFile("a pickle that torch.save did not write")
    about = _next_pickle(file, None)
    if isinstance(about, dict) and about.get("little_endian") is False:
        raise UnreadableFile("written on a big-endian machine, which is not supported; save it on another")
    storages: dict[str, Storage] = {}

    def persistent(identity: Value) -> Value:
        if isinstance(identity, tuple) and identity and identity[0] == "module":
            return identity[1] if len(identity) > 1 else None  # a class and its source text; the class is a stub
        dtype, key, count = storage_identity(identity)
        if count * dtype.itemsize > len(mapped):
            raise UnreadableFile(f"storage {key!r} claims {count} elements of {dtype}, more than the file holds")
        whole = storages.setdefault(key, Storage(dtype, count))
        if isinstance(identity, tuple) and identity[5:6] not in ((), (None,)):
            raise UnreadableFile(
                "storage views, which only PyTorch before 0.4 wrote; load and save it with a newer one"
            )
        return whole

    contents = _next_pickle(file, persistent)
    keys = _next_pickle(file, None)
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise UnreadableFile("the list of its storages is damaged")
    if sorted(map(str, keys)) != sorted(storages):
        raise UnreadableFile("the list of its storages does not fit its tensors")
    position = file.tell()
    for key in map(str, keys):
        storage = storages[key]
        start, size = position + 8, storage.count * storage.dtype.itemsize
        position = start + size
        if position > len(mapped):
            raise UnreadableFile("cut short: the values of its last tensors are missing")
        if int(mapped[start - 8 : start].view("<i8")[0]) != storage.count:
            raise UnreadableFile(f"storage {key!r} does not have the {storage.count} elements that its tensors claim")
        storage.data = mapped[start:position].view(storage.dtype)
    return contents


class _MappedFile:
    """A file over mapped bytes with `read`, `readline` and `tell`. Reads end at the end of the map."""

    def __init__(self, mapped: np.ndarray):
        self._bytes, self._position = mapped, 0

    def read(self, count: int) -> bytes:
        if pickles.LARGEST_PICKLE < count <= len(self._bytes) - self._position:
            raise UnreadableFile(f"its pickle has a text of {count:,} bytes, more than weights need")
        found = self._bytes[self._position : self._position + max(count, 0)].tobytes()
        self._position += len(found)
        return found

    def readline(self) -> bytes:
        window = self._bytes[self._position : self._position + _LONGEST_LINE].tobytes()
        return self.read(window.find(b"\n") + 1 or len(window))

    def tell(self) -> int:
        return self._position

    def between(self, start: int, stop: int) -> bytes:
        return self._bytes[start:stop].tobytes()

    def __len__(self) -> int:
        return len(self._bytes)


def _next_pickle(file: _MappedFile, persistent: Callable[[Value], Value] | None) -> Value:
    start = file.tell()
    pickles.check(file)
    return unpickle(file.between(start, file.tell()), persistent or _no_storage, len(file))


def _no_storage(identity: Value) -> NoReturn:
    raise UnreadableFile("a tensor in an unexpected place")


# Safetensors

_SAFETENSORS_DTYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}


def read_safetensors(path: AnyPath) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views, also those of bfloat16, which the library cannot give as NumPy.

    Raises:
        UnreadableFile: the file is missing or damaged; the message does not name the file.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise UnreadableFile(f"its header claims {length:,} bytes, more than {_LARGEST_HEADER:,}")
        with safe_open(path, framework="numpy"):
            pass  # the library has checked the header against the file
        mapped = np.memmap(path, np.uint8, mode="r")
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableFile(f"not readable as safetensors ({error})") from None
    header = json.loads(mapped[8 : 8 + length].tobytes())
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _SAFETENSORS_DTYPES:
            continue
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if len(shape) > MOST_AXES:
            raise UnreadableFile(f"a tensor of {len(shape)} axes")
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        block = mapped[start:stop].view(dtype)
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        tensors[name] = Tensor(Storage(dtype, len(block), block), 0, shape, strides)
    return tensors
