"""The kinds of counterfactuals, and the measures of how a model's answer moves."""

from dataclasses import dataclass

from afloc_jax.evaluation.task import CardTable


@dataclass(frozen=True)
class Kind:
    """A kind of counterfactual: its key in files, its title on the page, and what is asked."""

    name: str
    title: str
    about: str


KINDS = (
    Kind("side", "The other side", "the prompt with left and right exchanged"),
    Kind("zone", "The other zone", "the prompt with upper and lower, or apical and basal, exchanged"),
    Kind("negation", "The negation", 'the prompt with "no" before it, or "not" behind its verb'),
    Kind("absent_finding", "An absent finding", "a prompt for a class that this image is known to lack"),
    Kind("other_image", "Another image", "the same prompt on an image of another patient that does not show the class"),
)
TITLES = {kind.name: kind.title for kind in KINDS}


@dataclass(frozen=True)
class Metric:
    """A measure of a kind of counterfactual.

    Attributes:
        name: the key in files.
        title, about: the title and the explanation on the page.
        low: the start of its scale on the page.
        chance: the value of a model that does not tell the two apart; None if it depends on the data.
    """

    name: str
    title: str
    about: str
    low: float = 0.0
    chance: float | None = None

    def of(self, kind: str) -> str:
        """The title with the kind before it, such as "The other side: peak stays there"."""
        own = self.title if self.title.startswith("AUC") else self.title[0].lower() + self.title[1:]
        return f"{TITLES[kind]}: {own}"


METRICS = (
    Metric(
        "similarity_drop", "Drop of similarity", "cosine of image and prompt, less that of the counterfactual", -1.0
    ),
    Metric("peak_shift", "Shift of the peak", "distance between the two maxima, in sides of the scored square"),
    Metric("mass_shift", "Mass that moves", "share of the map's mass that lies elsewhere"),
    Metric("found", "Peak in the finding", "share of maps of the original prompt with their maximum in the finding"),
    Metric("stays", "Peak stays there", "share of counterfactual maps with their maximum still in that finding"),
    Metric("right_place", "To the right place", "share of counterfactual maps with their maximum where it should be"),
    Metric("auc_similarity", "AUC, similarity", "AUC of present against counterfactual by the cosine", chance=0.5),
    Metric("auc_maximum", "AUC, maximum", "AUC of present against counterfactual by the map's maximum", chance=0.5),
)
MOVES = METRICS[:6]  # means over samples
SCORES = ("similarity", "maximum")  # scores of a pair of image and prompt; each has an AUC
HEADLINE = (
    ("side", "right_place"),
    ("side", "stays"),
    ("negation", "auc_similarity"),
    ("absent_finding", "auc_similarity"),
    ("other_image", "auc_similarity"),
)
"""The kinds and metrics at the top of the page and in the model card."""
FOR_READERS = sorted(METRICS, key=lambda metric: metric in MOVES[:3])  # amounts last
BY_NAME = {metric.name: metric for metric in METRICS}
CARD = CardTable(
    "Counterfactual prompts and images, mean over classes",
    {f"{kind} {metric}": BY_NAME[metric].of(kind) for kind, metric in HEADLINE},
)
