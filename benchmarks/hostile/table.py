"""The table of hostile inputs."""

from collections.abc import Iterable, Sequence

from benchmarks.hostile.running import BAD, OUTCOMES, Group, Tally, tally


def every_group() -> list[Group]:
    """The groups of all modules."""
    from benchmarks.hostile import configs, folders, images, tables, truth, weights, words

    return [group for module in (tables, truth, images, weights, folders, configs, words) for group in module.groups()]


def rows(tallies: Sequence[Tally]) -> str:
    """The rows of the groups and of all together, in Markdown."""
    total = Tally("all")
    for one in tallies:
        total.counts.update(one.counts)
    lines = [["group", "inputs", *OUTCOMES], ["---"] * (2 + len(OUTCOMES)), *(one.row for one in tallies), total.row]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(names: Iterable[str] = (), every: bool = False) -> int:
    """Prints the table of hostile inputs and the ones that went wrong (or `every` one); returns the exit status."""
    tallies = tally(every_group, names)
    print(rows(tallies))
    for one in tallies:
        for name, (outcome, said) in one.said.items():
            if every or outcome in BAD:
                print(f"{one.name}, {name}: {outcome}: {said[-1500:] if outcome in BAD else said[:200]}")
    return int(any(one.counts[outcome] for one in tallies for outcome in BAD))
