"""Hostile weights and model folders are refused within 2 s and 200 MB beyond the same command on a missing file."""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_weights import checkpoint
from safetensors.numpy import load_file, save_file

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.weights.folder import load_model
from afloc_jax.weights.importers import import_model
from afloc_jax.weights.tensors import fault_of
from benchmarks.hostile.large_weights import FILES, PICKLES, PLACES, TENSORS
from benchmarks.hostile.valid_files import legacy_file, torch_archive
from tests.inference.conftest import folder  # noqa: F401

SECONDS, BYTES = 2.0, 200_000_000  # of the processor, because other work may share the machine
IMPORTED: set[str] = set()  # commands whose modules are loaded


def status_kb(name: str) -> int:
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])


def cost(arguments: list[str], capfd) -> tuple[float, int, str]:
    """Seconds of the processor, bytes of peak memory beyond what was in use, and the line of a command that fails."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, began = status_kb("VmRSS"), time.process_time()
    assert main(arguments) in (1, 2)
    seconds, peak = time.process_time() - began, 1024 * (status_kb("VmHWM") - before)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "internal error" not in said and len(said) < 2000, said[:3000]
    return seconds, peak, said


def check_cost(arguments: list[str], missing: list[str], capfd) -> str:
    if arguments[0] not in IMPORTED:
        IMPORTED.add(arguments[0])
        cost(missing, capfd)  # imports what the command needs
    base_seconds, base_bytes, _ = cost(missing, capfd)
    seconds, peak, said = cost(arguments, capfd)
    assert seconds < base_seconds + SECONDS, f"{seconds:.2f} s: {said}"
    assert peak < base_bytes + BYTES, f"{peak / 1e6:.0f} MB: {said}"
    return said


FORMS = [*((name, True) for name in PICKLES), *((name, False) for name in list(PICKLES)[::4])]


@pytest.mark.parametrize(("name", "zipped"), FORMS, ids=[f"{name}, {'zip' if z else 'legacy'}" for name, z in FORMS])
def test_pickles(name, zipped, tmp_path, capfd):
    file = tmp_path / "hostile.pth"
    file.write_bytes((torch_archive if zipped else legacy_file)(PICKLES[name]))
    out = str(tmp_path / "model")
    check_cost(["import", str(file), out], ["import", str(tmp_path / "missing.pth"), out], capfd)


@pytest.mark.parametrize("name", TENSORS)
def test_safetensors_headers(name, tmp_path, capfd):
    (tmp_path / "hostile.safetensors").write_bytes(TENSORS[name])
    out = str(tmp_path / "model")
    calls = (["import", str(tmp_path / f"{file}.safetensors"), out] for file in ("hostile", "missing"))
    check_cost(*calls, capfd)


def test_a_list_of_a_million_members_of_an_archive(tmp_path, capfd):
    count, entry = 1_000_000, b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, count * len(entry), 4, 0)
    (tmp_path / "hostile.pth").write_bytes(b"PK\x03\x04" + entry * count + end)
    out = str(tmp_path / "model")
    said = check_cost(["import", str(tmp_path / "hostile.pth"), out], ["import", "missing.pth", out], capfd)
    assert "list of members has more than" in said


@pytest.fixture
def copy(tmp_path, folder):  # noqa: F811
    """A model folder, which holds tensors and words, to be changed."""
    target = tmp_path / "model"
    target.mkdir()
    for path in Path(folder).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def loads(model) -> list[str]:
    return ["export", str(model), str(Path(model).parent / "out"), "--format", "safetensors"]


@pytest.mark.parametrize("name", PLACES)
def test_counts_and_sizes_of_a_model_folder(name, copy, tmp_path, capfd):
    config = json.loads((copy / "config.json").read_text())
    *keys, last, value = PLACES[name]
    section = config
    for key in keys:
        section = section[key]
    section[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    said = check_cost(loads(copy), loads(tmp_path / "missing"), capfd)
    assert str(last) in said and "at most" in said


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_model_folder(name, copy, tmp_path, capfd):
    file, content = FILES[name]
    (copy / file).write_bytes(content())
    check_cost(loads(copy), loads(tmp_path / "missing"), capfd)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_on_load_and_import(value, copy, released, tmp_path):
    weights = load_file(copy / "model.safetensors")
    name = "img_encoder.local_embedder.weight"
    weights[name] = weights[name].copy()
    weights[name].reshape(-1)[3] = value
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} has values that are NaN or infinite"):
        load_model(copy)
    _, state, words = released
    state = {key: tensor.clone() for key, tensor in state.items()}
    state[name].reshape(-1)[3] = value
    with pytest.raises(UserError, match=rf"{name} has values that are NaN or infinite"):
        import_model(checkpoint(tmp_path / "nan.ckpt", state), tmp_path / "out", words)
    assert not (tmp_path / "out").exists()


def test_complex_weights_are_refused_and_large_finite_ones_are_not(released, tmp_path):
    _, state, words = released
    name = "img_encoder.local_embedder.weight"
    state = {**state, name: state[name].to(torch.complex64)}
    with pytest.raises(UserError, match=rf"{name} has complex values"):
        import_model(checkpoint(tmp_path / "complex.ckpt", state), tmp_path / "out", words)
    assert fault_of(np.full(9, np.finfo(np.float32).max, np.float32)) == ""
