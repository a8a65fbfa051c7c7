"""A model in a notebook: what is given to it, what it shows, and what several threads get."""

import base64
import dataclasses
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import cv2
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

import afloc_jax
from afloc_jax import Localization, Probabilities
from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.inference import programs
from afloc_jax.inference.figures import MOST_SIDE, marked
from afloc_jax.inference.notebook import SIDE, Gallery
from afloc_jax.inference.pixels import pixels_of
from afloc_jax.inference.remembered import Remembered
from afloc_jax.weights.calibration import Calibration, Pooled

PROMPTS = ["small left pleural effusion", "right upper lobe nodule"]


@pytest.fixture
def film(tmp_path):
    """Colour pixels, and a file of them under the name of a patient."""
    pixels = np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "DOE_JANE.png")
    return pixels, tmp_path / "DOE_JANE.png"


@pytest.fixture
def calibrated(folder):
    """A model by which nothing is there."""
    model = afloc_jax.load(folder)
    model.calibration = Calibration(dataset="phantom", pooled=Pooled(bias=-2.0))
    return model


class Elements(HTMLParser):
    """The elements of some HTML, with their text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text, self.open = [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in ("img", "br"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


# What is given


def test_files_pil_images_and_arrays_of_one_film_have_one_map(model, film):
    pixels, path = film
    same = [path, str(path), Image.open(path, formats=["PNG"]), pixels, pixels / 255]
    found = model.localize(same, PROMPTS)
    for row in found[1:]:
        for one, first in zip(row, found[0], strict=True):
            np.testing.assert_allclose(one.square, first.square, atol=1e-5 * np.abs(first.square).max())
            np.testing.assert_array_equal(one.picture, first.picture)
    probabilities = model.classify(same, ["edema", "nodule"])
    np.testing.assert_allclose(probabilities, np.broadcast_to(probabilities[0], (5, 2)), rtol=1e-5)
    whole = model.embed_images(same).whole
    np.testing.assert_allclose(whole, np.broadcast_to(whole[0], whole.shape), rtol=1e-4, atol=1e-5)


def test_iterators_are_read_a_batch_at_a_time(folder, film):
    model, read = afloc_jax.load(folder, batch_size=2), []

    def films():
        for number in range(5):
            read.append(number)
            yield film[0]

    rows = model.localize_each(films(), (prompt for prompt in PROMPTS))
    assert [one.prompt for one in next(rows)] == PROMPTS
    assert read == [0, 1]
    assert len(list(rows)) == 4 and read == [0, 1, 2, 3, 4]
    assert len(model.localize(film[1].parent.glob("*.png"), PROMPTS[:1])) == 1
    assert model.classify(film[1].parent.glob("*.png"), iter(["edema"])).shape == (1, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model, film: model.localize(film, PROMPTS), "images must be a list, not one ndarray: put it in brack"),
        (lambda model, film: model.localize(Image.fromarray(film), PROMPTS), "must be a list, not one Image"),
        (lambda model, film: model.classify(film, ["edema"]), "must be a list, not one ndarray"),
        (lambda model, film: model.embed_images(film), "must be a list, not one ndarray"),
        (lambda model, film: model.embed_texts("edema"), "prompts must be a list, not one str"),
        (lambda model, film: model.classify([film], "edema"), "classes must be a list, not one str"),
        (lambda model, film: model.classify([film], []), "no classes given"),
        (lambda model, film: model.localize([film], 3), "prompts must be a list, not a int"),
        (lambda model, film: list(model.localize_each(iter([]), PROMPTS)), "no images given"),
        (lambda model, film: model.embed_images([]), "no images given"),
        (lambda model, film: model.localize([film, film, film * 1.0], PROMPTS), r"images\[2\]: floats have black at 0"),
        (lambda model, film: model.classify([film, film[0, 0]], ["edema"]), r"images\[1\]: an array must be grey"),
        (lambda model, film: model.classify([film], ["edema"], prompts="chests"), "no set of that name.*chest"),
    ],
)
def test_a_wrong_call_names_what_is_wrong(model, film, call, words):
    with pytest.raises(UsageError, match=words):
        call(model, film[0])


def test_the_number_of_an_image_counts_over_batches(folder, film):
    with pytest.raises(UsageError, match=r"^images\[3\]: "):
        afloc_jax.load(folder, batch_size=2).localize([film[0]] * 3 + [film[0] * 1.0], PROMPTS)


def test_a_prompt_set_may_be_named(model, film):
    named = model.classify([film[0]], ["edema"], prompts="chest")
    read = model.classify([film[0]], ["edema"], prompts=afloc_jax.read_prompt_set("chest"))
    np.testing.assert_array_equal(named, read)
    assert not np.array_equal(named, model.classify([film[0]], ["edema"]))


# What is shown


def test_a_model_says_what_it_is(model, calibrated):
    lines = repr(model).splitlines()
    assert re.fullmatch(r"Model 'tiny', \d{2},\d{3} parameters", lines[0])
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "image tower resnet_small, 64 pixels (images are framed to 224)",
        "text tower BERT, 2 layers of 32, 24 tokens",
        "trained on pairs",
        "licence not stated",
        "presence not calibrated",
    ]
    assert repr(calibrated).endswith("calibrated on phantom")
    model = afloc_jax.Model(
        dataclasses.replace(model.config, trained_on=("mimic_cxr", "pairs"), card={"licence": "CC " * 40}),
        model.variables,
        model.tokenizer,
    )
    assert "trained on   mimic_cxr, pairs\n" in repr(model)
    assert re.search(r"licence      (CC ){19}\.\.\.\n", repr(model))


def test_a_localization_is_one_line(model, calibrated, film):
    found = model.localize([film[0]], PROMPTS)[0]
    line = f"Localization('{PROMPTS[0]}', 90 x 70 pixels, similarity {found[0].similarity:.3f})"
    assert repr(found) == f"[{line}, {found[1]!r}]"
    present = calibrated.localize([film[0]], PROMPTS)[0][0]
    assert repr(present).endswith(", present 0.12)") and present.is_absent


def test_a_plot_is_the_overlay_of_the_command(model, folder, film, tmp_path):
    call = ["localize", str(folder), str(film[1]), "--prompt", PROMPTS[0], "--out", str(tmp_path / "out")]
    assert main(call) == 0
    written = cv2.imread(str(tmp_path / "out/DOE_JANE.0.overlay.png"))[..., ::-1]
    plot = model.localize([film[1]], PROMPTS[:1])[0][0].plot()
    assert isinstance(plot, Image.Image) and plot.size == (written.shape[1], written.shape[0])
    np.testing.assert_allclose(np.asarray(plot, int), written.astype(int), atol=1)


def test_a_plot_is_small_or_has_the_size_of_the_image_that_is_given(model):
    large = np.random.default_rng(0).integers(0, 256, (1500, 2000), dtype=np.uint8)
    found = model.localize([large], PROMPTS[:1])[0][0]
    assert found.picture.shape == (768, MOST_SIDE) and max(found.plot().size) <= MOST_SIDE
    whole = np.asarray(found.plot(large))
    assert whole.shape[1] == 2000 and whole.shape[0] > 1500
    np.testing.assert_array_equal(whole[:1500], marked(large, found.placed, found.caption))
    with pytest.raises(UsageError, match="has 20 x 30 pixels, and the one that was localised 1500 x 2000"):
        found.plot(large[:20, :30])


def test_the_picture_is_not_the_memory_of_the_caller(model, pictures):
    film = pictures[0].copy()
    found = model.localize([film], PROMPTS[:1])[0][0]
    film[:] = 0
    np.testing.assert_array_equal(found.picture, pictures[0])


def test_axes_of_matplotlib_have_the_pixels_of_the_image(model, pictures):
    found = model.localize([pictures[0]], PROMPTS[:1])[0][0]
    axes = matplotlib.figure.Figure().add_subplot()
    assert found.plot_on(axes) is None
    assert axes.get_xlim() == (0, 131) and axes.get_ylim() == (97, 0) and not axes.axison
    np.testing.assert_array_equal(axes.images[0].get_array(), marked(pictures[0], found.placed, found.caption))
    assert axes.get_title().startswith(f"{PROMPTS[0]}\npresence not calibrated")


def test_what_was_given_as_squares_is_drawn_on_the_image_that_is_given(model, pictures):
    square, geometry = model.square_of(pictures[0])
    found = next(model.localize_squares(square[None], [geometry], PROMPTS[:1]))[0]
    assert found._repr_html_() is None and Gallery([found])._repr_html_() is None
    with pytest.raises(UsageError, match=r"give the image: plot\(image\)"):
        found.plot()
    expected = model.localize([pictures[0]], PROMPTS[:1])[0][0].plot(pictures[0])
    np.testing.assert_allclose(np.asarray(found.plot(pictures[0]), int), np.asarray(expected, int), atol=1)


def test_a_notebook_shows_the_picture_and_says_the_rest_in_words(model, film):
    found = model.localize([film[1]], ["Small <b>effusion</b>"], threshold=0.2)[0][0]
    shown = Elements(found._repr_html_())
    (image,) = shown.of("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (90, 70, 3) and (image["width"], image["height"]) == ("70", "90")
    expected = marked(found.picture, found.placed, found.caption)[..., ::-1]
    assert np.abs(picture.astype(int) - expected).mean() < 25  # JPEG of noise
    x, y, width, height = found.boxes[0]
    assert image["alt"].startswith("Map of \u201cSmall <b>effusion</b>\u201d on an image of 70 x 90 pixels. Boxes, the")
    assert f"{width} x {height} at x {x}, y {y}" in image["alt"]
    facts = "Small <b>effusion</b>presence not calibrated \u00b7 score"
    assert shown.text.startswith(facts) and "threshold" in shown.text and not shown.of("b")
    assert not re.search("DOE|JANE|src=.http", found._repr_html_()), "names and files of others"
    assert not {"script", "link"} & {tag for tag, _ in shown.found}


def test_absent_prompts_and_warnings_are_told(calibrated, film):
    calibrated.config = dataclasses.replace(calibrated.config, trained_on=("phantom",))
    shown = calibrated.localize([film[0]], ["effusion \u0436\u0443\u043a"])[0][0]._repr_html_()
    assert "present: 0.12 \u00b7 judged absent" in shown
    notes = re.findall(r'<div role="note">(.*?)</div>', shown)
    assert [note[:40] for note in notes] == [
        "Warning: The model does not know: \u0436\u0443\u043a.",
        "Warning: The model was trained on drawin",
    ]
    assert re.search(r'alt="An image of 70 x 90 pixels without boxes: .* is judged absent\."', shown)


def test_large_films_take_little_room_in_a_notebook(model):
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1500, 2000), dtype=np.uint8), (0, 0), 9)
    maps = model.localize([smooth] * 2, PROMPTS)
    images = Elements(maps._repr_html_()).of("img")
    assert [int(image["width"]) for image in images] == [SIDE] * 4
    assert len(maps._repr_html_()) < 400_000


def test_long_lists_are_cut():
    class Word(str):
        def _repr_html_(self):
            return f"<b>{self}</b>"

    shown = Gallery([Word(k) for k in range(30)])._repr_html_()
    assert shown.count("<b>") == 12 and shown.endswith("<p>and 18 more</p></div>")


def test_probabilities_are_an_array_with_a_table(model, calibrated, film):
    found = model.classify([film[0], film[1]], ["edema", "a <i> nodule"])
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (2, 2)
    assert found.classes == ("edema", "a <i> nodule") and found.present == [[None, None]] * 2
    for plain in (found[0], found[:, 0], found > 0.5, found.T @ found, found.mean(axis=0), np.exp(found), 1 - found):
        assert type(plain) is np.ndarray
    assert found.argmax(axis=1).tolist() == np.asarray(found).argmax(axis=1).tolist()
    assert isinstance(found[0, 0], np.float32) and isinstance(found.max(), np.float32)
    same = pickle.loads(pickle.dumps(found))
    assert same._repr_html_() == found._repr_html_() and np.array_equal(same, found)
    shown = Elements(found._repr_html_())
    assert [cell["scope"] for cell in shown.of("th")] == ["col"] * 3 + ["row"] * 2 and not shown.of("i")
    assert "Zero-shot probability of each class; presence is not calibrated" in shown.text
    assert f"0{found[0, 0]:.2f}{found[0, 1]:.2f}1" in shown.text
    both = calibrated.classify([film[0]], ["edema", "No finding"])
    assert both.present[0][0] == pytest.approx(0.1192, abs=1e-4) and both.present[0][1] is None
    assert f"{both[0, 0]:.2f} (0.12)" in both._repr_html_() and "in brackets the calibrated" in both._repr_html_()


def test_probabilities_warn_of_unknown_words_and_drawings(calibrated, film):
    calibrated.config = dataclasses.replace(calibrated.config, trained_on=("phantom",))
    found = calibrated.classify([film[0]], ["\u0436\u0443\u043a"])
    assert found.warnings[0] == "The model does not know: \u0436\u0443\u043a."
    assert found.warnings[1].startswith("Image 0: the model was trained on drawings of chests")
    assert found._repr_html_().count('role="note"') == 2
    assert Probabilities.of(np.zeros((101, 1)), ["edema"], [[None]] * 101)._repr_html_().count("<tr>") == 101
    assert np.zeros((1, 1)).view(Probabilities)._repr_html_() is None


# Threads and caches


def test_threads_get_what_one_call_after_another_gets(folder, pictures):
    """Half of the prompts are those of other threads, and the cache is too small for all."""
    texts = [f"{size} {side} {what}" for size in ("small", "large") for side in ("left", "right") for what in PROMPTS]
    calls = [(pictures[k % 5], [texts[k % 8], texts[(3 * k) % 8]]) for k in range(24)]
    alone, shared = afloc_jax.load(folder), afloc_jax.load(folder)
    shared._prompts = Remembered(3)

    def ask(model, call):
        image, prompts = call
        row = model.localize([image], prompts)[0]
        return [one.square for one in row], model.classify([image], prompts), [one.boxes for one in row]

    expected = [ask(alone, call) for call in calls]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda call: ask(shared, call), calls))
    for (maps, scores, boxes), (maps_alone, scores_alone, boxes_alone) in zip(found, expected, strict=True):
        np.testing.assert_allclose(maps, maps_alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, scores_alone, rtol=1e-4, atol=1e-5)
        assert [len(some) for some in boxes] == [len(some) for some in boxes_alone]
    assert len(shared._prompts.kept()) <= 3


def test_one_pil_image_may_be_used_by_many_threads(film):
    expected = pixels_of(film[1])
    for _ in range(5):
        image = Image.open(film[1], formats=["PNG"])  # decoded by the first that asks
        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(pixels_of, [image] * 8):
                np.testing.assert_array_equal(found, expected)


def test_a_further_question_about_an_image_does_not_encode_it_again(folder, pictures, monkeypatch):
    model, encode, seen = afloc_jax.load(folder), programs.encode_images, []

    def counted(network, variables, squares):
        seen.append(len(squares))
        return encode(network, variables, squares)

    monkeypatch.setattr(programs, "encode_images", counted)
    first = model.localize(pictures[:1], PROMPTS)[0]
    again = model.localize([pictures[0].copy()], PROMPTS[::-1])[0]
    model.classify(pictures[:1], ["edema"])
    assert seen == [1]
    np.testing.assert_array_equal(again[1].square, first[0].square)
    model.localize(pictures[1:2], PROMPTS)
    assert seen == [1, 1]
    square, geometry = model.square_of(pictures[1])
    list(model.localize_squares(square[None], [geometry], PROMPTS))  # of commands on many images, which keep none
    assert seen == [1, 1, 1] and len(model._images.kept()) == 2


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    kept = Remembered[str, bytes](most=10, size=len)

    def made(new):
        return [key.encode() * 4 for key in new]

    assert kept.all_of(["a", "b"], made) == [b"aaaa", b"bbbb"]
    kept.all_of(["a"], made)
    kept.all_of(["c"], made)
    assert kept.kept() == ["a", "c"]
    assert kept.all_of(["ddd"], made) == [b"ddd" * 4]  # larger than all the room
    assert kept.kept() == []


def test_of_two_threads_that_compute_one_value_both_get_the_same():
    kept = Remembered[str, list](most=10)
    inner = []

    def slow(_):
        inner.extend(kept.all_of(["a"], lambda _: [["first"]]))  # as another thread would meanwhile
        return [["second"]]

    (outer,) = kept.all_of(["a"], slow)
    assert outer is inner[0] and outer == ["first"]


def test_a_localization_goes_through_a_pickle(model, pictures):
    found = model.localize(pictures[:1], PROMPTS)[0]
    again = pickle.loads(pickle.dumps(found))
    assert again._repr_html_() == found._repr_html_()
    np.testing.assert_array_equal(again[1].boxes, found[1].boxes)


def test_a_localization_equals_itself_alone(model, pictures):
    one, other = (model.localize(pictures[:1], PROMPTS[:1])[0][0] for _ in range(2))
    assert one == one and one != other and one in [other, one] and len({one, other}) == 2
    assert isinstance(one, Localization)
