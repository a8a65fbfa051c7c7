"""`afloc verify`: whether a model folder, or all that a run saved, is as it was sealed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, read_json
from afloc_jax.seals import SEAL, NewerFormat, problems, read_seal
from afloc_jax.training import workdir
from afloc_jax.training.checkpoints import damage, ever_sealed, is_unfinished, steps_in
from afloc_jax.weights.config import CONFIG, read_config
from afloc_jax.weights.folder import is_model_file

State = Literal["intact", "edited", "unfinished", "damaged", "not sealed"]


@dataclass(frozen=True)
class Verdict:
    """What was found of a part of a folder.

    Attributes:
        part: its path below the folder; "." for the folder itself.
        state: "edited": a file was changed that holds no weights and no words, such as config.json. "unfinished": a
            checkpoint that is being saved, or the rest of a save that was killed; nothing is lost. "not sealed": it is
            the work of earlier versions and cannot be verified.
        why: the reason where it is not intact.
    """

    part: str
    state: State
    why: str = ""

    @property
    def line(self) -> str:
        """The verdict for a reader."""
        return f"{self.part}: {self.state}{f' ({self.why})' if self.why else ''}"


def verify(folder: Path) -> list[Verdict]:
    """Compares all sealed files of a model folder or a working directory with their hashes. It writes nothing.

    Raises:
        UsageError: the folder is neither.
    """
    tokenizer, checkpoints, model = parts = [
        folder / name for name in (workdir.TOKENIZER, workdir.CHECKPOINTS, workdir.MODEL)
    ]
    if (folder / workdir.RUN).is_file() or any(part.is_dir() for part in parts):
        expected = {tokenizer: (folder / workdir.RUN).is_file(), model: (folder / workdir.FINISHED).is_file()}
        found = [_of_files(place, folder) for place, must in expected.items() if must or place.is_dir()]
        return [*found, *_of_checkpoints(checkpoints, folder), *_of_notes(folder)]
    if not (folder / CONFIG).is_file() and not (folder / SEAL).is_file():
        raise UsageError(f"{folder}: is no model folder and no working directory of a run; give one of the two")
    return [_of_files(folder, folder)]


def _of_notes(folder: Path) -> Iterator[Verdict]:
    """What a run notes as JSON and cannot be read any more."""
    for name in (CONFIG, workdir.RUN, workdir.FINISHED):
        try:
            if name == workdir.FINISHED:
                workdir.read_finished(folder)
            elif (folder / name).exists() and not isinstance(read_json(folder / name), dict):
                raise UserError(f"{folder / name}: is not what this program writes")
        except UserError as error:
            yield Verdict(name, "damaged", str(error))


def _of_files(place: Path, above: Path) -> Verdict:
    """The verdict of a folder with a seal: a model, or a tokenizer, which has no config.json."""
    part = place.relative_to(above).as_posix()
    if not place.is_dir():
        return Verdict(part, "damaged", "is missing; the command of the run makes it again, or says what it needs")
    try:
        if place.name != workdir.TOKENIZER:
            read_config(place)
        if read_seal(place) is None:
            return Verdict(part, "not sealed", f"it has no {SEAL}")
    except UserError as error:
        return Verdict(part, "damaged", str(error))
    found = list(problems(place, is_model_file))
    serious = [problem for problem, name in found if is_model_file(name)]
    if serious:
        return Verdict(part, "damaged", "; ".join(serious))
    return Verdict(part, "edited", "; ".join(problem for problem, _ in found)) if found else Verdict(part, "intact")


def _of_checkpoints(place: Path, above: Path) -> Iterator[Verdict]:
    last, steps = ever_sealed(place), steps_in(place)
    for step in steps:
        try:
            reason = damage(place / str(step))
        except NewerFormat as error:
            reason = str(error)
        wrong: State = "unfinished" if is_unfinished(place, step, last) else "damaged"
        yield Verdict(f"{place.name}/{step}", wrong if reason else "intact", reason)
    if last and not steps:
        yield Verdict(place.name, "damaged", f"step {last} was saved, and there is no checkpoint")
