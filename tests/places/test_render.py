"""The commands of each place: scripts that the shell reads, whose flags and files are those that exist."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import launch
from afloc_jax.cli import main
from afloc_jax.cli.render import PLACES as OFFERED  # named there again, for a quick --help
from afloc_jax.errors import UsageError
from afloc_jax.places.machines import Gpus, machines
from afloc_jax.places.render import PLACES, Request, Run, render
from afloc_jax.training import recipes
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.sweep import load_runs

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"`afloc (render [^`]*)` prints:\n\n```\n(.*?)```\n", re.DOTALL)
BLOCKS = [found for page in sorted(ROOT.glob("docs/launching/*.md")) for found in BLOCK.findall(page.read_text())]


def rendered(capsys, *words):
    assert main(["render", *words]) == 0
    return capsys.readouterr().out


def config_of(words):
    """The config that `afloc train` makes of a rendered command's flags."""
    given = [word.replace("gs://BUCKET", "/bucket") for word in words if word.startswith("--")]
    return RunConfig.from_config(launch.parse(["afloc train", *given]).config)


def trainings(calls):
    """The words of each `afloc train` among the calls of a script, which another machine may read."""
    sent = [shlex.split(call[-1].partition("--command=")[2]) for call in calls if call[-1].startswith("--command=")]
    return [words for words in [*calls, *sent] if words[:2] in (["afloc", "train"], ["afloc_env/bin/afloc", "train"])]


@pytest.fixture
def shell(tmp_path):
    """Runs a script on a machine where the commands of clouds and clusters only write down how they were called."""
    (tmp_path / "bin").mkdir()

    def run(script, status=0, **environment):
        for name in ("gcloud", "srun", "scontrol", "sbatch", "squeue", "afloc", "pip", "xpk", "docker", "kubectl"):
            path = tmp_path / "bin" / name
            path.write_text(
                f"#!{os.sys.executable}\nimport json, sys\n"
                f"open({str(tmp_path / 'log')!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
                f"sys.exit({status if name == 'srun' else 0})\n"
            )
            path.chmod(0o755)
        environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path)
        calls = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        (tmp_path / "log").unlink()
        return done.returncode, calls

    return run


@pytest.mark.parametrize(("command", "block"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_page_shows_what_the_tool_prints_and_the_shell_can_read_it(command, block, capsys):
    assert rendered(capsys, *shlex.split(command)[1:]) == block
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["gpu", "--topology=l4:1"], True),
        (["slurm", "--topology=rtx4090:1", "--config=afloc", "--sweep=levels"], True),
        (["gpus", "--topology=l4:2"], False),  # 64 pairs a card
        (["gpu", "--topology=l4:1", "--set=training.batch_size=64"], False),
        (["gpu", "--topology=l4:1", "--set=training.micro_batch=64"], False),
        (["gpu", "--topology=l4:1", "--config=demo"], False),
        (["gpu", "--topology=a100-40:1"], False),
    ],
)
def test_what_a_card_of_little_memory_needs_is_added_and_said(words, added, capsys):
    script = rendered(capsys, *words)
    assert ("--set training.remat=blocks" in script) == ("--config.training.remat=blocks" in script) == added
    assert ("training.remat is added for the memory of the card" in script) == added


def test_every_place_has_a_page():
    assert {shlex.split(command)[1] for command, _ in BLOCKS} == set(PLACES) == set(OFFERED)
    with pytest.raises(SystemExit):
        main(["render", "moon"])


@pytest.mark.parametrize("place", PLACES)
def test_the_flags_of_training_are_read_as_they_were_given(place, capsys, shell):
    script = rendered(capsys, place, "--set", "data.max_tokens=77", "--set", "name=two words")
    if place == "gke":
        (job,) = (part for part in manifests(script) if part["kind"] == "Job")
        calls = [job["spec"]["template"]["spec"]["containers"][0]["args"]]
    elif place == "slurm":
        job = re.search(r"<<'END'\n(.*?)^END$", script, re.DOTALL | re.MULTILINE)[1]
        calls = [call[call.index("afloc") :] for call in shell(job)[1] if call[0] == "srun"]
    else:
        calls = trainings(shell(script)[1])
    assert calls
    for call in calls:
        config = config_of(call)
        assert (config.data.max_tokens, config.name) == (77, "two words")
        assert ("--distributed" in call) == (place in ("slurm", "cloud_tpu", "gke"))


def manifests(script):
    return list(yaml.safe_load_all(re.search(r"<<'END'\n(.*?)^END$", script, re.DOTALL | re.MULTILINE)[1]))


def test_a_job_of_gke_has_a_pod_for_each_host(capsys):
    for topology, hosts, device, each in (
        ("v5e:4x4", 4, "google.com/tpu", 4), ("v5e:2x4", 1, "google.com/tpu", 8), ("h100:4x8", 4, "nvidia.com/gpu", 8)
    ):  # fmt: skip
        service, job = manifests(rendered(capsys, "gke", "--topology", topology, "--name", "mine", "--image", "r/a:b"))
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == hosts
        pod = job["spec"]["template"]["spec"]
        assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"] == "mine"
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {device: each} and container["image"] == "r/a:b"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "JAX_COORDINATOR_ADDRESS": "mine-0.mine:1234",
        "JAX_NUM_PROCESSES": "4",
    }


def test_the_runs_of_a_sweep_are_those_of_afloc_sweep(capsys, shell):
    config = launch.parse(["x", "--config=afloc", "--workdir=w", "--config.data.directory=/bucket/data",
                           "--config.data.cache=/tmp/cache"]).config  # fmt: skip
    wanted = {run.name: run.config for run in load_runs(recipes.find("levels", "sweep"), config)}
    for place in ("cloud_tpu", "gke"):
        calls = trainings(shell(rendered(capsys, place, "--config", "afloc", "--sweep", "levels"))[1])
        told = {next(word for word in call if "workdir" in word).rsplit("/", 1)[1]: call for call in calls}
        assert {name: config_of(call) for name, call in told.items()} == wanted


def test_workloads_have_names_of_their_own_that_kubernetes_allows():
    runs = [Run(f"lr={lr}_" + "x" * 50, {"optimizer.lr": lr}) for lr in (1e-4, 2e-4)]
    names = re.findall(r"--workload=(\S+)", render(Request("gke", sweep="lr.py", runs=runs)))
    assert len(set(names)) == 2 and all(re.fullmatch("[a-z][-a-z0-9]{0,38}[a-z0-9]", name) for name in names)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"place": "gpu", "topology": "h100:8"}, "--topology h100:8: gpu is this machine, on one GPU, such as h100:1"),
        ({"place": "cloud_tpu", "topology": "l4:1"}, "cloud_tpu is a slice of Cloud TPU"),
        ({"place": "laptop", "topology": "cpu:2"}, "--topology: a laptop computes on its CPU"),
        ({"place": "gke", "topology": "v5e"}, "--topology v5e: write v5e:16x16"),
        ({"place": "gke", "name": "My job"}, "--name My job: write small letters"),
        ({"place": "gke", "topology": "h100:8", "sweep": "levels"}, "sweeps on GKE are rendered for TPUs alone"),
        ({"place": "slurm", "sweep": "levels"}, "a run of a sweep takes the GPUs of one node"),
        (
            {"place": "gke", "sweep": "s", "runs": [Run("a", {"data.builder": {"train": 1}})]},
            "run a: data.builder is a whole section",
        ),
    ],
)
def test_what_cannot_be_rendered_is_refused(given, complaint):
    with pytest.raises(UsageError, match=re.escape(complaint)):
        render(Request(**given))


def test_a_batch_that_does_not_divide_is_refused(capsys):
    assert main(["render", "gke", "--set", "training.batch_size=100"]) == 2
    assert "must be a multiple of the number of devices, 16" in capsys.readouterr().err


def test_slices_are_called_what_google_calls_them():
    names = {topology: machines(topology).accelerator for topology in ("v5e:2x4", "v6e:16x16", "v5p:2x2x1", "v4:2x2x4")}
    assert names == {"v5e:2x4": "v5litepod-8", "v6e:16x16": "v6e-256", "v5p:2x2x1": "v5p-8", "v4:2x2x4": "v4-32"}
    assert machines("v4:2x2x4").devices == 32 and machines("l4:1") == Gpus(1, 1)


def test_hosts_of_a_slice_get_the_command_as_it_was_written(shell, capsys):
    script = rendered(capsys, "cloud_tpu", "--set", "name=it's two", "--repository", "https://host/afloc_jax.git")
    status, calls = shell(script)
    sent = [call[-1].removeprefix("--command=") for call in calls if call[0] == "gcloud" and "ssh" in call]
    assert status == 0 and len(sent) == 3
    assert shlex.split(sent[1])[-1] == "afloc-jax[tpu,gcs] @ git+https://host/afloc_jax.git"
    assert shlex.split(sent[2])[:4] == ["afloc_env/bin/afloc", "train", "--config=mimic_cxr", "--config.name=it's two"]


def test_a_job_of_slurm_is_queued_again_after_a_signal_alone(shell, capsys, tmp_path):
    status, calls = shell(rendered(capsys, "slurm"))
    assert status == 0 and ["sbatch", "train.sbatch"] in calls
    job = (tmp_path / "train.sbatch").read_text()
    assert re.findall(r"^#SBATCH --(?:nodes|gpus-per-node|ntasks-per-node)=(\d+)$", job, re.MULTILINE) == [
        "4",
        "8",
        "8",
    ]
    for ended, queued in ((0, False), (1, False), (143, True)):
        status, calls = shell(job, ended, SLURM_JOB_ID="7", CONTAINER="r#a:gpu")
        assert status == ended and (["scontrol", "requeue", "7"] in calls) == queued
        options = ["--kill-on-bad-exit=1", "--gpu-bind=none", "--container-image=r#a:gpu", "--container-mounts=/shared"]
        assert calls[0][:8] == ["srun", *options, "afloc", "train", "--config=mimic_cxr"]
    assert "--container-image" not in str(shell(job, SLURM_JOB_ID="7")[1])
