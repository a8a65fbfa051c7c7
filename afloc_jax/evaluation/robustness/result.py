"""The result of robustness to wording: summary.json and summary.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afloc_jax.evaluation.results import Overall, Result
from afloc_jax.evaluation.robustness.metrics import METRICS, SPREADS
from afloc_jax.evaluation.statistics.interval import Interval


@dataclass(frozen=True)
class Spread:
    """The spread of a metric of a class over its phrases (see `SPREADS`), and its value for every phrase."""

    mean: Interval
    deviation: Interval
    lowest: Interval
    highest: Interval
    range: Interval
    per_paraphrase: Mapping[str, Interval]

    def ranked(self, highest_first: bool = False) -> list[str]:
        """The phrases by their value, an undefined one being 0; equal ones in the order of the prompt set."""
        values = {text: 0.0 if math.isnan(value.mean) else value.mean for text, value in self.per_paraphrase.items()}
        return sorted(values, key=values.__getitem__, reverse=highest_first)


@dataclass(frozen=True)
class Robustness(Result):
    """The spread of the scores of each class over its phrases.

    Attributes:
        n: the number of records.
        paraphrases: the phrases of each class.
        left_out_classes: classes without a metric, with the reason.
        spread: the spread by metric and class.
        metrics: means over classes, with keys "<metric> <spread>" such as "auc range".
    """

    n: int
    paraphrases: Mapping[str, Sequence[str]]
    left_out_classes: Mapping[str, str]
    spread: Mapping[str, Mapping[str, Spread]]
    metrics: Mapping[str, Overall]

    def phrases(self, name: str) -> list[str]:
        """The scored phrases of a class, the one with the highest value of its first metric first."""
        scored = [self.spread[metric.name] for metric in METRICS if name in self.spread.get(metric.name, ())]
        return scored[0][name].ranked(highest_first=True) if scored else []

    def to_markdown(self) -> str:
        lines = [
            "# Prompt robustness",
            "",
            f"{self.n} records. Scores of the same finding with several phrases: mean over phrases, standard "
            f"deviation, lowest, highest, range. Value [{self.account.interval}].",
        ]
        lines += self.remark_on_few
        lines += [f"Left out: {name} ({why})." for name, why in self.left_out_classes.items()]
        for metric in METRICS:
            if metric.name not in self.spread:
                continue
            lines += ["", f"## {metric.title}", ""]
            lines += [f"| | ways | {' | '.join(SPREADS)} | lowest by | highest by |", "|---|---|" + "---|" * 7]
            for name, spread in self.spread[metric.name].items():
                cells = [str(getattr(spread, part)) for part in SPREADS]
                order = spread.ranked()
                lines.append(f"| {self.marked(name)} | {len(order)} | {' | '.join(cells)} | {order[0]} | {order[-1]} |")
            cells = [str(self.metrics[f"{metric.name} {part}"].overall) for part in SPREADS]
            lines.append(f"| **mean over classes** | | {' | '.join(cells)} | | |")
        return "\n".join(lines) + "\n"
