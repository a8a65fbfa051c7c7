"""The result of counterfactuals: summary.json and summary.md."""

from collections.abc import Mapping
from dataclasses import dataclass

from afloc_jax.evaluation.counterfactual.metrics import KINDS, METRICS
from afloc_jax.evaluation.results import ByCategory, Result


@dataclass(frozen=True)
class Counterfactuals(Result):
    """How a model's answers move.

    Attributes:
        n: the number of findings, each with its prompt.
        n_per_category: that of each class.
        asked: the number of counterfactuals by kind and class.
        true: by kind, the number of them that are true of their image, because the finding lies there too.
        not_applicable: by kind, the number of findings without a counterfactual, by reason.
        metrics: by "<kind> <metric>", such as "side right_place".
    """

    n: int
    n_per_category: Mapping[str, int]
    asked: Mapping[str, Mapping[str, int]]
    true: Mapping[str, int]
    not_applicable: Mapping[str, Mapping[str, int]]
    metrics: Mapping[str, ByCategory]

    def left_out(self, kind: str) -> str:
        """The sentence on findings without a counterfactual of a kind; empty if all have one."""
        reasons = [f"{why} ({count:,})" for why, count in self.not_applicable[kind].items()]
        return f"Not asked where the prompt or image {', '.join(reasons)}." if reasons else ""

    def to_markdown(self) -> str:
        lines = [
            "# Counterfactuals",
            "",
            f"{self.n} findings, each with its prompt. Value [{self.account.interval}]; mean over classes.",
            *self.remark_on_few,
        ]
        for kind in KINDS:
            keys = [m.name for m in METRICS if f"{kind.name} {m.name}" in self.metrics]
            asked = self.asked[kind.name]
            lines += ["", f"## {kind.title}", "", f"{kind.about}. {sum(asked.values())} asked; "]
            lines[-1] += f"{self.true[kind.name]} of them are true of the image. {self.left_out(kind.name)}".strip()
            if not keys:
                continue
            lines += ["", f"| | asked | {' | '.join(keys)} |", "|---|---|" + "---|" * len(keys)]
            of_kind = [self.metrics[f"{kind.name} {key}"] for key in keys]
            for name, count in asked.items():
                cells = [str(values.per_category[name]) for values in of_kind]
                lines.append(f"| {self.marked(name)} | {count} | {' | '.join(cells)} |")
            cells = [str(values.overall) for values in of_kind]
            lines.append(f"| **mean over classes** | {sum(asked.values())} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"
