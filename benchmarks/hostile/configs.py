"""Hostile configs of training."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.hostile.changes import leaves, replaced, spoken
from benchmarks.hostile.folders import NONSENSE
from benchmarks.hostile.running import Group, Input

USUAL = "^demo: the config is valid|^loss.low_rank is off"  # what a valid config prints on stderr
CONFIG = "from configs import demo\n\n\ndef get_config():\n    config = demo.get_config()\n{}    return config\n"


def _launch(folder: Path) -> None:
    (folder / "config.py").write_text(CONFIG.format(""))


def _dry_run(_: Path, __: str) -> object:
    """Something new: a config that should be refused is never harmless."""
    return object()


def _config_files() -> Iterator[Input]:
    texts = {
        "no Python": "def get_config(:\n",
        "no get_config": "config = 1\n",
        "nothing": "",
        "an error": "def get_config():\n    return 1 / 0\n",
        "returns None": "def get_config():\n    return None\n",
        "returns a list": "def get_config():\n    return []\n",
        "ends the process": "import sys\nsys.exit(0)\n",
        "a missing module": "import no_such_module\n",
        "no UTF-8": "x = '\udcff'\n",
        "NUL": "x = '\0'\n",
        "recursion": "def get_config():\n    return get_config()\n",
    }
    for name, text in texts.items():
        yield Input(f"a config file: {name}", replaced("config.py", text))
    for name, words in {
        "a key that is unknown": ("--config.loss.twin=mask",),
        "a section that is unknown": ("--config.los.twins=mask",),
        "a section as a value": ("--config.loss=5",),
        "a flag that is unknown": ("--unknown=1",),
        "an argument": ("more",),
        "no value": ("--config.seed",),
        "a range that is none": ("--profile=5:1",),
        "a sweep that is missing": ("--sweep=none.py",),
        "restarts below 0": ("--max_restarts=-1",),
    }.items():
        yield Input(name, words=words, compared=False)


FREE = {"name", "data.raw", "data.directory", "data.cache", "data.exclude_words", "evaluation.datasets", "seed"}
SIGNED = {"loss.sigmoid_bias"}  # may be negative
OPEN_TEXTS = {"data.dataset", "data.train_split", "data.validation_split", "init_from", "model.text.tokenizer"}


def _settings() -> Iterator[Input]:
    """Every setting of configs/demo.py gets a value of another type, and a negative or unknown one."""
    from configs.demo import get_config

    for keys, value in leaves(get_config().to_dict()):
        key = ".".join(keys)
        if keys[:2] == ("data", "builder"):
            continue
        wrongs: list[Any] = [NONSENSE]
        if isinstance(value, bool):
            wrongs = ["maybe"]
        elif isinstance(value, int | float):
            wrongs = ["many", -3] if key not in FREE | SIGNED else ["many"]
        elif isinstance(value, str) and key not in FREE | OPEN_TEXTS:
            wrongs = [-7, "nonsense"]
        for wrong in wrongs:
            yield Input(f"{key}: {spoken(wrong)}", replaced("config.py", CONFIG.format(_assigned(keys, wrong))))


def _assigned(keys: Iterable[str], value: Any) -> str:
    """Lines that set a value of any type in a ConfigDict, which would not change the type of a field."""
    *sections, last = keys
    place = "".join(f"[{key!r}]" for key in sections)
    return f"    with config.ignore_type():\n        config{place}[{last!r}] = {value!r}\n"


def groups() -> list[Group]:
    """The group of this module."""
    command = ("launch", "--config=IN/config.py", "--workdir=OUT/run", "--dry_run")
    return [Group("configs", _launch, command, [*_config_files(), *_settings()], _dry_run, usual=USUAL)]
