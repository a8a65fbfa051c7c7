"""The files of deploy/: images that are built, and jobs that use them with flags which exist."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import launch
from afloc_jax.training.settings import RunConfig

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("docker/*.Dockerfile"))
JOBS = sorted(DEPLOY.glob("kubernetes/*.yaml"))

_spec = importlib.util.spec_from_file_location("dockerfile_steps", ROOT / ".ci/dockerfile_steps.py")
steps = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(steps)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Runs a script on a machine where `gcloud` and `srun` only write down how they were called."""
    (tmp_path / "bin").mkdir()
    for name in ("gcloud", "srun"):
        path = tmp_path / "bin" / name
        path.write_text(
            f'#!/bin/sh\nfor a in {name} "$@"; do printf "%s " "$a"; done >> {tmp_path}/log\necho >> {tmp_path}/log\n'
        )
        path.chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["bash", DEPLOY / script, *arguments], env={"PATH": path, **environment}, text=True)
        assert done.returncode == 0
        return (tmp_path / "log").read_text()

    return run


def test_there_is_an_image_for_gpus_and_one_for_tpus_and_the_jobs_use_them():
    assert [path.name for path in DOCKERFILES] == ["gpu.Dockerfile", "tpu.Dockerfile"]
    folders = {dict(steps.instructions(path))["WORKDIR"] for path in DOCKERFILES}
    used = set()
    for path in JOBS:
        for part in yaml.safe_load_all(path.read_text()):
            if part["kind"] == "Job":
                (container,) = part["spec"]["template"]["spec"]["containers"]
                used.add(container["image"].rsplit(":", 1)[1])
                assert container["workingDir"] in folders and container["command"] == ["python", "launch.py"]
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted == {volume["name"] for volume in part["spec"]["template"]["spec"]["volumes"]}
    assert used == {"gpu", "tpu"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_flags_of_a_job_are_those_of_launch(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = next(part for part in yaml.safe_load_all(path.read_text()) if part["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = [argument.replace("gs://BUCKET", "/bucket") for argument in container["args"]]
    assert RunConfig.from_config(launch.parse(["launch.py", *given]).config).data.dataset == "mimic_cxr"


def test_every_file_that_an_image_copies_is_in_the_repository_and_no_step_needs_docker():
    for path in DOCKERFILES:
        found = steps.instructions(path)
        assert {name for name, _ in found} == {"FROM", "WORKDIR", "COPY", "RUN", "CMD"}
        for name, rest in found:
            for pattern in rest.split()[:-1] if name == "COPY" else ():
                assert list(ROOT.glob(pattern)), f"{path.name}: {pattern}"


def test_a_cloud_tpu_slice_runs_the_image_or_a_checkout(commands):
    call = ["cloud_tpu/train.sh", "n", "z", "v5litepod-16", "--config=configs/afloc.py", "--workdir=gs://b/a run"]
    said = commands(*call, IMAGE="eu-docker.pkg.dev/p/r/afloc_jax:tpu")
    assert "gcloud auth configure-docker --quiet eu-docker.pkg.dev &&" in said
    assert "--volume=/shared:/shared eu-docker.pkg.dev/p/r/afloc_jax:tpu" in said
    assert said.rstrip().endswith(r"python launch.py --config=configs/afloc.py --workdir=gs://b/a\ run  --distributed")
    assert "git fetch" not in said
    said = commands(*call, REPOSITORY="https://host/afloc_jax.git")
    assert "git fetch --quiet https://host/afloc_jax.git main" in said and ".venv/bin/python launch.py" in said


def test_slurm_runs_the_image_or_the_environment(commands):
    call = ["slurm/train.sbatch", "--config=configs/afloc.py"]
    with_image, without = (commands(*call, **given).splitlines()[-1] for given in ({"IMAGE": "r#a:gpu"}, {}))
    start = "srun --kill-on-bad-exit=1 --gpu-bind=none "
    end = "python launch.py --config=configs/afloc.py --distributed "
    assert (
        with_image
        == f"{start}--container-image=r#a:gpu --container-mounts=/shared --container-workdir=/afloc_jax {end}"
    )
    assert without == start + end


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
