"""Files of PyTorch read without it: equal to torch.load where that is safe, and inert where it would not be."""

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from afloc_jax.errors import UserError
from afloc_jax.weights.pickles import Stub
from afloc_jax.weights.tensors import Tensor, UnreadableFile
from afloc_jax.weights.torch_files import read_file, read_safetensors

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(contents, path: Path, zipped: bool = True) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    return path


def tensors() -> OrderedDict:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 5, generator=generator)
    tied = torch.randn(3, generator=generator)
    return OrderedDict(
        plain=values,
        transposed=values.t(),
        part=values[1:5:2, 1:],
        row=values[2],
        half=values.half(),
        bfloat16=values.bfloat16(),
        double=values.double(),
        long=torch.arange(7),
        boolean=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        repeated=torch.tensor([1.0, 2.0]).expand(3, 2),
        tied=tied,
        tied_again=tied,
        parameter=torch.nn.Parameter(values[0]),
    )


def numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@FORMATS
def test_every_tensor_equals_what_torch_loads(tmp_path, zipped):
    path = save({"state_dict": tensors(), "epoch": 3, "nested": [{"a": (1, None, "x")}]}, tmp_path / "a.ckpt", zipped)
    expected, found = torch.load(path, weights_only=True), read_file(path)
    assert found["epoch"] == 3 and found["nested"] == [{"a": (1, None, "x")}]
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for name, theirs in expected["state_dict"].items():
        ours = found["state_dict"][name]
        assert isinstance(ours, Tensor) and ours.shape == tuple(theirs.shape), name
        array = ours.array()
        assert array.dtype.name == str(theirs.dtype).removeprefix("torch."), name
        np.testing.assert_array_equal(array.astype(numpy(theirs).dtype), numpy(theirs), err_msg=name)


@FORMATS
@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_pickle_protocol_is_read(tmp_path, zipped, protocol):
    torch.save(tensors(), tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(read_file(tmp_path / "a.pt")["part"].array(), tensors()["part"].numpy())


def test_tied_tensors_are_views_of_one_place_that_is_not_writable(tmp_path):
    found = read_file(save(tensors(), tmp_path / "a.pt"))
    one, other = found["tied"].array(), found["tied_again"].array()
    assert np.shares_memory(one, other)
    assert np.shares_memory(found["plain"].array(), found["transposed"].array())
    with pytest.raises(ValueError):
        one[0] = 0


def test_safetensors_equal_what_torch_wrote(tmp_path):
    given = {name: value.detach().contiguous().clone() for name, value in tensors().items()}
    save_file(given, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = read_file(tmp_path / "a.safetensors")
    assert found.keys() == given.keys()
    for name, theirs in given.items():
        np.testing.assert_array_equal(found[name].array().astype(numpy(theirs).dtype), numpy(theirs), err_msg=name)


class Foreign:
    """A class of the file's author, with state of its own."""

    def __init__(self):
        self.inside = torch.ones(2)


@FORMATS
def test_unknown_classes_become_stubs_that_keep_their_state(tmp_path, zipped):
    found = read_file(save({"object": Foreign(), "list": [1]}, tmp_path / "a.pt", zipped))
    stub = found["object"]
    assert isinstance(stub, Stub) and stub.path.endswith(".Foreign")
    np.testing.assert_array_equal(stub.state["inside"].array(), np.ones(2))


# Hostile files


class Calls:
    """Pickles as a call: what any object may ask of whoever loads it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@FORMATS
def test_a_file_that_would_write_to_disk_writes_nothing(tmp_path, zipped):
    target = tmp_path / "written"
    program = f"open({str(target)!r}, 'w').write('here')"
    hostile = {"weights": torch.ones(1), "a": Calls(exec, program), "b": Calls(eval, program), "c": Calls(open, target)}
    path = save(hostile, tmp_path / "a.pt", zipped)
    torch.load(path, weights_only=False)  # the file does what it says in the hands of one who trusts it
    assert target.exists()
    target.unlink()
    found = read_file(path)
    assert not target.exists()
    assert all(isinstance(found[key], Stub) for key in "abc")
    assert found["a"].path.endswith(".exec") and found["a"].arguments == (program,)


@FORMATS
def test_a_file_that_would_import_a_module_imports_nothing(tmp_path, zipped, monkeypatch):
    (tmp_path / "module_of_a_stranger.py").write_text("def made(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_a_stranger

    path = save({"weights": torch.ones(1), "a": Calls(module_of_a_stranger.made)}, tmp_path / "a.pt", zipped)
    del sys.modules["module_of_a_stranger"]
    read_file(path)
    assert "module_of_a_stranger" not in sys.modules


def zip_of(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_names_that_climb_out_of_an_archive_lead_nowhere(tmp_path):
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    members = members_of(save({"a": torch.ones(2)}, inner / "a.pt"))
    hostile = zip_of(inner / "b.pt", {**members, "../../climbed": b"x", "/absolute": b"x", "a/../../climbed": b"x"})
    np.testing.assert_array_equal(read_file(hostile)["a"].array(), np.ones(2))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pt", "b.pt", "one", "two"]


def test_compressed_members_are_refused(tmp_path):
    """torch.save stores; a compressed member could unpack to any size."""
    members = members_of(save({"a": torch.zeros(1000)}, tmp_path / "a.pt"))
    bomb = zip_of(tmp_path / "b.pt", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnreadableFile, match=r"b\.pt: .* is compressed or encrypted"):
        read_file(bomb)


def test_a_value_that_changed_on_the_disk_is_noticed_by_the_checksum_of_its_archive(tmp_path):
    path = save({"a": torch.arange(500.0), "b": torch.ones(500)}, tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500.0).numpy().tobytes()) + 999] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["b"].sum() == 500  # PyTorch does not look
    found = read_file(path)
    np.testing.assert_array_equal(found["b"].array(), np.ones(500))
    with pytest.raises(UnreadableFile, match="the values of a tensor are damaged"):
        found["a"].array()


def test_an_archive_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(5.0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_file(path)["a"].array(), np.arange(5))


def test_overlapping_members_are_refused(tmp_path):
    path = save({"a": torch.ones(4), "b": torch.zeros(4)}, tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"a/data/{key}").header_offset for key in (0, 1))
    place = data.index(struct.pack("<I", second), data.index(b"PK\x01\x02"))
    data[place : place + 4] = struct.pack("<I", first)  # the directory points the second name at the first's bytes
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match=r"a\.pt: "):
        read_file(path)


@FORMATS
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, zipped, kept):
    path = save(tensors(), tmp_path / "cut.pt", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UnreadableFile, match=r"cut\.pt: [^\n]*$"):
        for tensor in read_file(path).values():
            tensor.array()


def _rebuilt(shape, count, storage=torch.FloatStorage, stride=None, offset=0):
    """A pickle of {"a": tensor} as torch.save writes it, with sizes of our choice."""

    class Persistent:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", storage, "0", "cpu", count) if isinstance(value, Persistent) else None

    made = io.BytesIO()
    stride = stride or tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    arguments = (Persistent(), offset, shape, stride, False, OrderedDict())
    Pickler(made, protocol=2).dump({"a": Calls(torch._utils._rebuild_tensor_v2, *arguments)})
    return made.getvalue()


@pytest.mark.parametrize(
    "shape, count, stride, offset, match",
    [
        ((2**28,), 2**28, None, 0, "claims 268435456 elements of float32, 1073741824 bytes, and has 16"),
        ((2**14, 2**14), 4, None, 0, "claims 1073741824 bytes, more than the whole file"),
        ((2**14, 2**14), 4, (0, 0), 0, "claims 1073741824 bytes, more than the whole file"),
        ((2, 2), 4, (3, 1), 0, "reaches to element 4 of a storage of 4"),
        ((4,), 4, None, 1, "reaches to element 4 of a storage of 4"),
        ((4,), 4, (-1,), 3, "not whole numbers"),
        ((-4,), 4, None, 0, "not whole numbers"),
        ((4,), -4, None, 0, "without a name or a size"),
    ],
)
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path, shape, count, stride, offset, match):
    members = {"r/data.pkl": _rebuilt(shape, count, stride=stride, offset=offset), "r/data/0": bytes(16)}
    with pytest.raises(UserError, match=match):
        read_file(zip_of(tmp_path / "a.pt", members))["a"].array()


def test_a_gigabyte_in_a_legacy_header_is_refused(tmp_path):
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    made = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 2**28, None) if value is Ellipsis else None

    call = Calls(torch._utils._rebuild_tensor_v2, Ellipsis, 0, (2**28,), (1,), False, OrderedDict())
    Pickler(made, protocol=2).dump({"a": call})
    parts += [made.getvalue(), pickle.dumps(["0"], 2), struct.pack("<q", 2**28), bytes(64)]
    path = tmp_path / "a.pth"
    path.write_bytes(b"".join(parts))
    with pytest.raises(UnreadableFile, match=r"a\.pth: storage '0' claims 268435456 elements"):
        read_file(path)


def test_a_gigabyte_in_a_safetensors_header_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(UnreadableFile, match=r"a\.safetensors: not readable as safetensors"):
        read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # LONG_BINPUT 4294967295: room for as many memo slots
        b"\x80\x04\x8e\xff\xff\xff\xff\x00\x00\x00\x00.",  # BINBYTES8 of four gigabytes
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # LONG4 of two gigabytes
        b"\x80\x02h\x05.",  # a memo slot that was never filled
        b"\x80\x02R.",  # a call with nothing on the stack
        b"\x80\x02cbuiltins\nset\n}X\x01\x00\x00\x00ax\x01\x00\x00\x00bs\x86b.",
        b"not a pickle",
    ],
)
def test_malformed_pickles_are_an_error_of_one_line(tmp_path, program):
    with pytest.raises(UnreadableFile, match=r"a\.pt: [^\n]*pickle[^\n]*$"):
        read_file(zip_of(tmp_path / "a.pt", {"r/data.pkl": program}))


def test_a_pickle_cannot_change_the_classes_and_functions_that_it_is_given(tmp_path):
    """BUILD sets attributes of what lies on the stack: here of the function that rebuilds tensors, and of a class."""
    for path in (
        b"torch._utils\n_rebuild_tensor_v2",
        b"collections\nOrderedDict",
        b"os\nsystem",
        b"torch\nFloatStorage",
    ):
        program = b"\x80\x02c" + path + b"\nN}X\x08\x00\x00\x00__call__K\x01s\x86b."  # BUILD with (None, {__call__: 1})
        with pytest.raises(UnreadableFile, match="pickle is malformed"):
            read_file(zip_of(tmp_path / "a.pt", {"r/data.pkl": program}))
    assert isinstance(read_file(save(tensors(), tmp_path / "b.pt"))["plain"], Tensor)


@FORMATS
def test_flipped_bytes_give_tensors_or_an_error_that_names_the_file(tmp_path, zipped):
    whole = save({"weights": tensors(), "object": Foreign()}, tmp_path / "a.pt", zipped).read_bytes()
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.pt", 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 5)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            found = read_file(path)
        except UnreadableFile as error:
            refused += 1
            assert "flipped.pt: " in str(error)
            continue
        weights = found.get("weights") if isinstance(found, dict) else None
        for value in weights.values() if isinstance(weights, dict) else ():
            if isinstance(value, Tensor):
                with contextlib.suppress(UnreadableFile):
                    value.array().astype(np.float64)
    assert refused > 20


@pytest.mark.parametrize(
    "content, match",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither a PyTorch file"),
        (b"PK\x03\x04 and then nothing of a zip archive", "not readable"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    ],
)
def test_what_is_no_weights_file_is_said_so(tmp_path, content, match):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"a\.bin: [^\n]*{match}[^\n]*$"):
        read_file(tmp_path / "a.bin")


@pytest.mark.parametrize("read", [read_file, read_safetensors])
def test_a_pipe_and_a_device_are_refused_before_they_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(UnreadableFile, match="not a regular file"):
            read(path)


def test_a_missing_file_and_a_torchscript_program_are_said_so(tmp_path):
    with pytest.raises(UnreadableFile, match="No such file"):
        read_file(tmp_path / "none.pt")
    members = {"r/data.pkl": pickle.dumps({}, 2), "r/constants.pkl": b""}
    with pytest.raises(UnreadableFile, match="TorchScript"):
        read_file(zip_of(tmp_path / "a.pt", members))
