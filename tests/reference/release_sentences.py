"""How the published release draws the sentences of a report, in plain words, and how likely each outcome is.

`draw` calls NumPy's old random functions with the release's bounds: `randint` never returns its upper one. `outcomes`
walks every number and every order that those calls can give. Its reports end with the impression; ours begin with it.
"""

import itertools
from collections import Counter
from fractions import Fraction


def draw(random, sentences, impression_count, mode):
    """One caption as a tuple of sentences; `random` is a numpy.random.RandomState."""
    if len(sentences) < 2:
        return (sentences[0],)
    if mode == 1:
        number = random.randint(1, len(sentences))
        return tuple(sentences[place] for place in random.choice(len(sentences), number, replace=False))
    findings_count = len(sentences) - impression_count
    if findings_count == 0:
        return tuple(sentences)
    number = random.randint(1, findings_count + 1)
    findings = [sentences[place] for place in random.choice(findings_count, number, replace=False)]
    return (*findings, *sentences[findings_count:])


def outcomes(sentences, impression_count, mode):
    """Caption -> its exact probability."""
    if len(sentences) < 2:
        return {(sentences[0],): Fraction(1)}
    findings = sentences if mode == 1 else sentences[: len(sentences) - impression_count]
    tail = sentences[len(findings) :]
    if not findings:
        return {tuple(sentences): Fraction(1)}
    numbers = range(1, len(findings) + (mode == 2))
    found = Counter()
    for number in numbers:
        orders = list(itertools.permutations(findings, number))
        for order in orders:
            found[(*order, *tail)] += Fraction(1, len(numbers) * len(orders))
    return dict(found)
