"""The model card: README.md of a model folder, written from facts about the run or import that made the weights."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
from jinja2 import Environment, StrictUndefined

from afloc_jax.settings import Json, plain
from afloc_jax.weights.config import FolderConfig
from data_pipelines.what_images import only_drawings

INTENDED_USE = (
    "Research on localisation without annotations: heat maps for free-text phrases on chest radiographs and similar "
    "images, and zero-shot scores for named findings."
)
LIMITS = (
    "Not a medical device; not for diagnosis or for decisions about patients.",
    "A heat map is computed for every phrase, also for one that is not true of the image: it shows where the phrase "
    "fits best, not whether the finding is present.",
    "Scores are valid for the population, devices and wording of the data above; others need their own evaluation.",
)

ATTENTION = (
    "Training compares a phrase with a mean of all regions, weighted by a softmax, in which background outweighs a "
    "small finding."
)  # a limit of the published region pooling
APART = (
    ", imported from separate sources and not trained together. **Train it before use: its maps and scores mean "
    "nothing yet.**"
)
USE_OF_PARTS = "A start for training on pairs of images and reports. Not for use as it is."
_LEVELS = {
    "word": "words with a shallow map",
    "sentence": "sentences with a deep map",
    "report": "the report with the global image vector",
}
_NUMBERS = ("no level", "one level", "two levels", "three levels")

DRAWINGS = (
    "The model was trained on drawings of chests that this program makes (phantoms), and on no image of a patient. On "
    "radiographs its maps and scores are those of chance."
)
USE_OF_DRAWINGS = "Trying the program on drawings. Not for radiographs or other images of patients."

LABELLED = {
    "records": "Its labels are those of the data set.",
    "table": "Its labels are those of a table.",
    "reports": "Its labels are read from the reports by rule: stated, denied, or silent, which is left out.",
}

_TEMPLATE = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)

_CARD = _TEMPLATE.from_string("""\
---
library_name: afloc-jax
license: {{ licence_id }}
pipeline_tag: zero-shot-image-classification
tags:
- radiology
- visual-grounding
- contrastive-learning
widget:
- text: small left pleural effusion
- text: no pneumothorax
{% if index %}
model-index:
- name: {{ name | tojson }}
  results:
{% for entry in index %}
  - task:
      type: {{ entry.task | tojson }}
      name: {{ entry.title | tojson }}
    dataset:
      type: {{ entry.builder | tojson }}
      name: {{ entry.dataset | tojson }}
    metrics:
{% for metric in entry.metrics %}
    - type: {{ metric.type | tojson }}
      name: {{ metric.name | tojson }}
      value: {{ metric.value | tojson }}
{% endfor %}
{% endfor %}
{% endif %}
---

# {{ name }}

{% if drawings %}
**{{ drawings }}**

{% endif %}
An image encoder ({{ architecture.image.backbone }}) and a text encoder (BERT){{ made }}

The heat map of a phrase comes from the deep map.

```python
import afloc_jax

model = afloc_jax.load("path/to/this/folder")
found = model.localize(["image.png"], ["small left pleural effusion"])[0][0]
found.heatmap, found.boxes, found.similarity
```

`model.safetensors` holds float32 tensors with the published PyTorch names, for `load_state_dict`.

## Data

{{ data }}

{% if vocabulary %}
## Vocabulary

{{ vocabulary }}

{% endif %}
{% if recipe %}
## Recipe

| setting | value |
|---|---|
{% for key, value in recipe.items() %}
| {{ key }} | {{ value }} |
{% endfor %}

{% endif %}
## Results

{% for table in tables %}
{{ table.title }}, 95 % bootstrap interval in brackets.

| {{ table.columns | join(" | ") }} |
|{{ "---|" * (table.columns | length) }}
{% for row in table.rows %}
| {{ row | join(" | ") }} |
{% endfor %}
{% if not loop.last %}

{% endif %}
{% else %}
Not evaluated yet: `afloc evaluate MODEL --dataset NAME --data DIR --out DIR`.
{% endfor %}

## Presence

{% if presence %}
The probability that an image shows what a prompt names is fitted on {{ presence["data set"] }}. {{ labelled }} It
holds for images among which findings are as frequent as there. Classes with a fit of their own:
{{ presence["own fit"] | join(", ") or "none" }}. All other prompts have the pooled fit
{%- if presence["pooled fit"] %}, among them the classes with too few records: {{ presence["pooled fit"] | join(", ") }}
{%- endif %}.
{% else %}
Not calibrated: `afloc calibrate MODEL --dataset NAME --data DIR`.
{% endif %}

## Preprocessing

One channel, {% if preprocessing.equalize != "none" %}equalised histogram ({{ preprocessing.equalize }}), {% endif -%}
longest side to {{ preprocessing.image_size }} pixels (area interpolation), zero-padded to a square, scaled
to [-1, 1]; resized to {{ architecture.image.input_size }} pixels inside the model. Prompts are lower-cased and cut
after {{ prompts.max_tokens }} tokens.

## Intended use

{{ intended_use }}

## Limits

{% for limit in limits %}
- {{ limit }}
{% endfor %}

## Licence

{{ licence }}
""")


def render_card(config: FolderConfig) -> str:
    """The model card in Markdown.

    Args:
        config: the config of the model folder. Its `card` may hold `data` (text, or a mapping of facts), `vocabulary`
            (text), `recipe` (mapping), `tables` (results, each with a title, columns, and rows of formatted cells),
            `index` (the same results for the hub's model-index, as `evaluation.run.card_index` makes them),
            `presence` (the data of its fit), `apart` (True: imported parts that have not been trained together),
            `intended_use`, `limits` (list), `licence` and `licence_id`.
    """
    card: Mapping[str, Any] = config.card
    data = card.get("data", "Not stated by the run that wrote this folder.")
    if isinstance(data, Mapping):
        data = "\n".join(f"- {key}: {value}" for key, value in data.items())
    drawn, apart = only_drawings(config.trained_on), bool(card.get("apart"))
    loss = card.get("recipe", {}).get("loss", {})
    attends = not apart and loss.get("region_pooling", "attention") == "attention"
    use = USE_OF_PARTS if apart else USE_OF_DRAWINGS if drawn else INTENDED_USE
    return _CARD.render(
        name=config.name,
        drawings=DRAWINGS if drawn else "",
        made=APART if apart else _trained(loss.get("weights", {})),
        architecture=config.architecture,
        preprocessing=config.preprocessing,
        prompts=config.prompts,
        data=data,
        vocabulary=card.get("vocabulary", ""),
        recipe=flatten(card.get("recipe", {})),
        tables=card.get("tables", ()),
        index=card.get("index", ()),
        presence=card.get("presence"),
        labelled=LABELLED.get(str((card.get("presence") or {}).get("labels")), ""),
        intended_use=card.get("intended_use", use),
        limits=card.get("limits", [*LIMITS, ATTENTION] if attends else LIMITS),
        licence_id=card.get("licence_id", "other"),
        licence=licence_of(config),
    )


def licence_of(config: FolderConfig) -> str:
    """The terms of the weights."""
    unstated = "The weights inherit the terms of the data they were trained on; state them here before sharing."
    return str(config.card.get("licence", unstated))


def _trained(weights: Mapping[str, float]) -> str:
    """How both encoders were trained, with the levels of a weight above 0 where the weights are known."""
    levels = [said for name, said in _LEVELS.items() if weights.get(name)]
    which = f", at {_NUMBERS[len(levels)]}: {', '.join(levels)}" if levels else ""
    return f", trained contrastively on pairs of images and reports without location annotations{which}."


def flatten(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Nested settings as one mapping of dotted names to values; empty sections are left out."""
    flat = traverse_util.flatten_dict(plain(tree), sep=".")
    return {name: value for name, value in flat.items() if value not in ("", None, [])}
