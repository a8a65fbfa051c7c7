"""`afloc render`: the commands and files with which a run, or a sweep, is started in a place."""

import dataclasses
from argparse import Namespace

from afloc_jax.cli.arguments import setting
from afloc_jax.cli.parser import Parser

PLACES = ("laptop", "gpu", "gpus", "slurm", "cloud_tpu", "gke")
EXAMPLE = (
    "afloc render gke --topology v5e:4x4 --sweep levels\n\n"
    "It prints a script for the shell, and starts nothing. Names in capitals are to be filled in. The config is\n"
    "checked, also that its batch divides over the devices. What is printed for each place stands in docs/launching."
)


def add(command: Parser) -> None:
    command.add_argument("place", choices=PLACES, help="where the run is started")
    command.add_argument("--config", default="", metavar="FILE|RECIPE", help="as for afloc train (mimic_cxr; demo)")
    command.add_argument("--sweep", default="", metavar="FILE|RECIPE", help="a sweep instead of one run")
    command.add_argument("--topology", default="", metavar="KIND:SHAPE", help="as for afloc compile, such as h100:4x8")
    command.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="KEY=VALUE", help="change a value of the config"
    )
    command.add_argument("--name", default="afloc", help="of the slice, the job or the cluster (afloc)")
    for name, about in (
        ("project", "of Google Cloud"),
        ("zone", "of Google Cloud"),
        ("bucket", "of Google Cloud Storage, without gs://"),
        ("image", "made from deploy/docker, for GKE"),
        ("repository", "address of a git repository that the hosts of a slice can fetch"),
        ("partition", "of Slurm"),
    ):
        command.add_argument(f"--{name}", default=name.upper(), help=about)


def run(given: Namespace) -> int:
    from afloc_jax.cli.launching import parse
    from afloc_jax.places.render import Request, Run, advised, render
    from afloc_jax.training import recipes
    from afloc_jax.training.settings import RunConfig
    from afloc_jax.training.sweep import load_runs

    named = {name: value for name, value in vars(given).items() if name in Request.__dataclass_fields__}
    overrides = dict(text.split("=", 1) for text in given.set)
    request = Request(**named, overrides=overrides)
    changed = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = parse(["afloc render", f"--config={request.recipe}", *changed, "--workdir=w"]).config
    checked = RunConfig.from_config(config)
    checked.check_batch(request.devices)
    added = advised(checked, request.topology, request.devices)
    request = dataclasses.replace(request, overrides={**overrides, **added}, added=[*added])
    runs = load_runs(recipes.find(given.sweep, "sweep"), config) if given.sweep else []
    print(render(dataclasses.replace(request, runs=[Run(run.name, run.overrides) for run in runs])), end="")
    return 0


def _setting(text: str) -> str:
    setting(text)
    return text
