"""The commands with which a run, or a sweep, is started in a place: a shell script with blanks to be filled in."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from afloc_jax.errors import UsageError
from afloc_jax.models.settings import ModelSettings
from afloc_jax.places.machines import Gpus, Slice, machines
from afloc_jax.settings import Json
from afloc_jax.training.settings import RunConfig

_WIDTH = 116  # of the lines of a script, without a sign at their end


def folded(words: Sequence[str]) -> str:
    """The words of a command, quoted for the shell, on as many lines as they need."""
    return " \\\n    ".join(_lines(words, _WIDTH - 4))


def assigned(words: Sequence[str]) -> str:
    """Lines that give the shell variable `command` the words of a command that another machine will read."""
    first, *rest = _lines(words, _WIDTH - 16)
    return "\n".join([f"command={shlex.quote(first)}", *(f"command+={shlex.quote(' ' + line)}" for line in rest)])


def _lines(words: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for word in map(shlex.quote, words):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_TEMPLATES.filters.update(folded=folded, assigned=assigned)
_BLANKS = ("PROJECT", "ZONE", "BUCKET", "IMAGE", "REPOSITORY", "PARTITION")


@dataclass(frozen=True)
class Place:
    """A place where a run is started.

    Attributes:
        about: what it is.
        topology: that of the example, as `afloc compile` takes it; empty for a CPU.
        root: the folder of workdirs.
        data: the flags that name the records.
        config: the recipe of the example.
    """

    about: str
    topology: str
    root: str
    data: tuple[str, ...] = ()
    config: str = "mimic_cxr"


_LOCAL, _SHARED = ("--config.data.directory=data",), ("--config.data.directory=/shared/data",)
_BUCKET = ("--config.data.directory=gs://{bucket}/data", "--config.data.cache=/tmp/cache")
PLACES = {
    "laptop": Place("this machine, on its CPU", "", "runs", _LOCAL, "demo"),
    "gpu": Place("this machine, on one GPU", "h100:1", "runs", _LOCAL),
    "gpus": Place("this machine, on several GPUs", "h100:8", "runs", _LOCAL),
    "slurm": Place("nodes with GPUs of a cluster with Slurm", "h100:4x8", "/shared/runs", _SHARED),
    "cloud_tpu": Place("a slice of Cloud TPU, by gcloud", "v5e:4x4", "gs://{bucket}/runs", _BUCKET),
    "gke": Place(
        "nodes of GKE, with TPUs or GPUs, by kubectl; a sweep by xpk", "v5e:4x4", "gs://{bucket}/runs", _BUCKET
    ),
}


# Pairs of the published architecture that fit a card of 24 GB without `training.remat` (docs/launching/one_gpu.md).
_FIT_AS_THEY_ARE = {"l4": 112, "rtx4090": 120}


def advised(config: RunConfig, topology: str, devices: int) -> dict[str, str]:
    """Values of the config that a card of little memory needs for the published architecture; else none."""
    fit = _FIT_AS_THEY_ARE.get(topology.partition(":")[0])
    training = config.training
    stated = training.remat != "none" or training.micro_batch
    if fit is None or stated or config.model != ModelSettings() or training.batch_size <= fit * devices:
        return {}
    return {"training.remat": "blocks"}


@dataclass(frozen=True)
class Run:
    """A run of a sweep: its name, and its overrides by dotted key of the config."""

    name: str
    overrides: Mapping[str, Json]


@dataclass(frozen=True)
class Request:
    """What is to be started, and where. The names in capitals are left to be filled in.

    Attributes:
        place: a key of `PLACES`.
        topology: empty for that of the place's example.
        config: the recipe or config file; empty for that of the place's example.
        overrides: changed values of the config, by dotted key.
        sweep: the recipe or file of a sweep; empty for one run.
        runs: the runs of the sweep.
        added: keys of `overrides` that the caller did not ask for, which the script says.
        name: of the slice, job or cluster.
    """

    place: str
    topology: str = ""
    config: str = ""
    overrides: Mapping[str, str] | None = None
    sweep: str = ""
    runs: Sequence[Run] = ()
    added: Sequence[str] = ()
    name: str = "afloc"
    project: str = "PROJECT"
    zone: str = "ZONE"
    bucket: str = "BUCKET"
    image: str = "IMAGE"
    repository: str = "REPOSITORY"
    partition: str = "PARTITION"

    @property
    def recipe(self) -> str:
        return self.config or PLACES[self.place].config

    @property
    def devices(self) -> int:
        """How many devices JAX will see."""
        return 1 if (found := self.machines) is None else found.devices

    @property
    def machines(self) -> Gpus | Slice | None:
        """The machines of the topology; None for a CPU. Raises UsageError where the place has no such machines."""
        given = self.topology or PLACES[self.place].topology
        if self.place == "laptop":
            if self.topology:
                raise UsageError("--topology: a laptop computes on its CPU; leave it out")
            return None
        found = machines(given)
        fits = {
            "gpu": isinstance(found, Gpus) and found.devices == 1,
            "gpus": isinstance(found, Gpus) and found.hosts == 1 and found.cards > 1,
            "slurm": isinstance(found, Gpus),
            "cloud_tpu": isinstance(found, Slice),
        }
        if not fits.get(self.place, True):
            example = PLACES[self.place].topology
            raise UsageError(f"--topology {given}: {self.place} is {PLACES[self.place].about}, such as {example}")
        return found


def render(request: Request) -> str:
    """The script.

    Raises:
        UsageError: the topology does not fit the place, the name is none that Kubernetes allows, or a run of the sweep
            cannot be told by flags.
    """
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", request.name):
        raise UsageError(f"--name {request.name}: write small letters, digits and hyphens, beginning with a letter")
    place, found = PLACES[request.place], request.machines
    title = Path(request.sweep or request.recipe.partition(":")[0]).stem
    workdir = f"{place.root}/{title}".format(bucket=request.bucket)
    drawn = request.recipe.startswith("demo")  # phantoms are drawn where they are needed
    data = [] if drawn else [flag.format(bucket=request.bucket) for flag in place.data]
    config = [f"--config={request.recipe}", *map(_flag, (request.overrides or {}).items()), *data]
    name = request.place
    if request.sweep and isinstance(found, Gpus):
        if name == "gke":
            raise UsageError(
                f"--topology {request.topology}: sweeps on GKE are rendered for TPUs alone, such as v5e:4x4"
            )
        if found.hosts > 1:
            raise UsageError("--sweep: on Slurm a run of a sweep takes the GPUs of one node, such as h100:8")
    if name == "gke":
        name = "gke_sweep" if request.sweep else "gke_gpu" if isinstance(found, Gpus) else "gke_tpu"
    sets = [word for item in (request.overrides or {}).items() for word in ("--set", "=".join(item))]
    quick = [word.replace("=demo", "=demo:quick") if word == "--config=demo" else word for word in config]
    script = _TEMPLATES.get_template(f"{name}.sh.jinja").render(
        request=request,
        machines=found,
        gpus=isinstance(found, Gpus),
        train=["afloc", "train", *config, f"--workdir={workdir}"],
        sweep=["afloc", "sweep", *config, f"--sweep={request.sweep}", f"--workdir={workdir}"],
        rehearsal=["afloc", "train", *quick, f"--workdir={place.root}/rehearsal"],
        compile=[
            "afloc",
            "compile",
            "--config",
            request.recipe,
            "--topology",
            request.topology or place.topology,
            *sets,
        ],
        runs=[
            (
                _label(request.name, number, run.name),
                ["afloc", "train", *config, *_flags(run), f"--workdir={workdir}/{run.name}", "--distributed"],
            )
            for number, run in enumerate(request.runs, start=1)
        ],
    )
    left = [word for word in _BLANKS if re.search(rf"\b{word}\b", script)]
    told = f"# To be filled in (flags of the same names do so): {', '.join(left)}\n" if left else ""
    for key in request.added:
        told += f"# {key} is added for the memory of the card; the table of docs/launching/one_gpu.md says why.\n"
    return told + script


def _flag(item: tuple[str, Json]) -> str:
    key, value = item
    return f"--config.{key}={value}"


def _flags(run: Run) -> list[str]:
    for key, value in run.overrides.items():
        if isinstance(value, Mapping):
            raise UsageError(
                f"--sweep: run {run.name}: {key} is a whole section, which no flag can say; use afloc sweep"
            )
    return [_flag(item) for item in run.overrides.items()]


def _label(name: str, number: int, run: str) -> str:
    """A name that Kubernetes allows: letters, digits and "-", at most 40."""
    return f"{name}-{number}-{re.sub('[^a-z0-9]+', '-', run.lower())}"[:40].strip("-")
