"""The files of deploy/: images that are built. The jobs that use them: tests/places."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("docker/*.Dockerfile"))

_spec = importlib.util.spec_from_file_location("dockerfile_steps", ROOT / ".ci/dockerfile_steps.py")
steps = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(steps)


def test_there_is_an_image_for_gpus_and_one_for_tpus():
    assert [path.name for path in DOCKERFILES] == ["gpu.Dockerfile", "tpu.Dockerfile"]


def test_every_file_that_an_image_copies_is_in_the_repository_and_no_step_needs_docker():
    for path in DOCKERFILES:
        found = steps.instructions(path)
        assert {name for name, _ in found} == {"FROM", "WORKDIR", "COPY", "RUN", "CMD"}
        for name, rest in found:
            for pattern in rest.split()[:-1] if name == "COPY" else ():
                assert list(ROOT.glob(pattern)), f"{path.name}: {pattern}"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is missing: pip install -r requirements-dev.txt")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", *DOCKERFILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow  # gigabytes of wheels
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_the_steps_of_an_image_run_in_a_clean_environment(path):
    version = dict(steps.instructions(path))["FROM"].split(":")[1].split("-")[0]
    if sys.version_info[:2] != tuple(map(int, version.split("."))) and shutil.which(f"python{version}") is None:
        pytest.skip(f"the image has Python {version}, which is not on PATH")
    subprocess.run([sys.executable, ROOT / ".ci/dockerfile_steps.py", path], check=True)
