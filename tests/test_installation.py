"""Extras, what `afloc doctor` says of an installation, and the scripts that complete its commands."""

import json
import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from afloc_jax import extras, installation
from afloc_jax.cli import COMMANDS, main
from tests.links import ROOT

BROUGHT = {"cuda": "jax[cuda13]", "tpu": "jax[tpu]"}  # these packages come with JAX's own extras


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_an_extra_is_its_list_of_requirements(extra):
    lines = (ROOT / f"requirements-{extra}.txt").read_text().splitlines()
    wanted = [str(Requirement(line)) for line in lines if line and not line.startswith("#")]
    if extra in BROUGHT:
        assert [line.partition("]")[0] + "]" for line in wanted] == [BROUGHT[extra]]
    else:
        assert [Requirement(line).name for line in wanted] == list(extras.EXTRAS[extra])
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    listed = hooks["requirements_txt"]["optional-dependencies"]
    assert listed[extra] == [f"requirements-{extra}.txt"] and set(listed) == {*extras.EXTRAS, "dev", "docs"}


def machine(root, vendor="0x10de", kind="0x030200", driver=False):
    device = root / "sys/bus/pci/devices/0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text("NVRM")
    return installation.Path(root)


@pytest.mark.parametrize(
    ("seen", "lacking", "platforms", "said"),
    [
        ({}, True, "", 'an NVIDIA card is present, but .* not installed: pip install "afloc-jax[cuda]"'),
        ({}, True, "cpu", "an NVIDIA card is present, but .* because JAX_PLATFORMS=cpu: unset that variable"),
        ({}, False, "", "an NVIDIA card is present, but .* install the driver, 580 or newer"),
        ({"driver": True}, False, "", "an NVIDIA card is present, but .* jax.devices('cuda')\" says why"),
        ({"vendor": "0x1ae0", "kind": "0x00ff00"}, True, "", 'a TPU is present, but .* pip install "afloc-jax[tpu]"'),
        ({"kind": "0x020000"}, True, "", None),  # a network card of NVIDIA's
        ({"vendor": "0x8086"}, True, "", None),
    ],
)
def test_a_card_that_jax_does_not_use_is_a_line(seen, lacking, platforms, said, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "version", lambda name: None if lacking else "1")
    root = machine(tmp_path, **seen)
    found = installation.remarks("cpu", root, platforms)
    assert len(found) == bool(said)
    start, _, end = (said or "").partition(".*")
    assert all(line.startswith(start) and line.endswith(end) for line in found)
    assert installation.remarks("gpu", root, platforms) == []


def test_the_doctor_names_versions_devices_and_what_extras_lack(monkeypatch, capsys):
    monkeypatch.setattr(installation, "remarks", lambda *_: [])
    known = extras.version
    monkeypatch.setattr(extras, "version", lambda name: None if name == "uvicorn" else known(name))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "\nJAX computes on " in said and f"jax {known('jax')}, " in said
    assert '  serve       lacks uvicorn: pip install "afloc-jax[serve]"\n' in said
    monkeypatch.setattr(installation, "remarks", lambda *_: ["a card"])
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["remarks"] == ["a card"] and found["extras"]["serve"] == ["uvicorn"]


@pytest.fixture
def bash(tmp_path, capsys):
    """What bash offers for the last of these words."""
    pytest.importorskip("shtab", reason="SKIPPED: shtab is missing: pip install -r requirements-dev.txt")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def offered(*words):
        given = " ".join(f"'{word}'" for word in words)
        code = f"source {tmp_path}/script; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _shtab_afloc; "
        code = code.replace("_shtab_afloc;", "_shtab_afloc 2>/dev/null;") + 'printf "%s\\n" "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    return offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="SKIPPED: no bash")
def test_bash_completes_commands_flags_and_recipes(bash):
    assert set(bash("afloc", "")) >= set(COMMANDS)
    assert bash("afloc", "loc") == ["localize"]
    assert "--topology" in bash("afloc", "compile", "--t")
    assert "demo_published" in bash("afloc", "train", "--config", "demo")


def test_a_shell_is_told_what_completion_needs(monkeypatch, capsys):
    monkeypatch.setattr(extras, "version", lambda name: None)
    assert main(["completion", "zsh"]) == 2
    assert capsys.readouterr().err == 'afloc: completion needs shtab; run: pip install "afloc-jax[completion]"\n'
