"""Numbers of a run: `metrics.jsonl` (one object per line) and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from afloc_jax.files import write_whole

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file in order; a last line cut short by a kill is left out."""
    lines = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


class MetricsWriter:
    """Appends to the files of a working directory; writes nothing where `active` is False (other processes)."""

    def __init__(self, workdir: Path, restored_step: int, validated_step: int, active: bool = True) -> None:
        """Open the files; lines of steps after `restored_step`, and of validations after `validated_step`, are dropped.

        They will be written again. A signal during a validation leaves it behind the step.
        """
        self.active = active
        if not active:
            return
        path = workdir / METRICS
        until = {"validation": validated_step}
        kept = [line for line in read_metrics(path) if line["step"] <= until.get(line["split"], restored_step)]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir), purge_step=restored_step + 1 if restored_step else None)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line: step, split and the values; the same values as scalars `<split>/<name>` on TensorBoard."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered and close the files."""
        if self.active:
            self._file.close()
            self._board.close()
