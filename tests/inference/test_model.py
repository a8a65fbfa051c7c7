"""Loading, localising and classifying, against the published release and plain NumPy, SciPy and PyTorch."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import torch
from PIL import Image

import afloc_jax
from afloc_jax import heatmaps
from afloc_jax.errors import UsageError, UserError
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.inference import programs, towers
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.model import Model
from afloc_jax.inference.pixels import to_square
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.weights import torch_names
from afloc_jax.weights.config import FolderConfig
from afloc_jax.weights.folder import load_model
from configs.afloc import get_config
from data_pipelines.images import Geometry, crop_to_square
from data_pipelines.tokens import load_tokenizer, tokenize

PROMPTS = ["small left pleural effusion", "right upper lobe nodule. no edema", "Pneumonia"]


def reference_map(deep: np.ndarray, report: np.ndarray, side: int) -> np.ndarray:
    """The published heat map, with SciPy and PyTorch."""
    similarity = np.einsum("hwd,d->hw", deep.astype(np.float64), report.astype(np.float64))
    smooth = scipy.ndimage.gaussian_filter(similarity, 1.5 * len(deep) / 19)
    tensor = torch.from_numpy(smooth)[None, None]
    return torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)[0, 0].numpy()


def test_loading_and_localising_needs_neither_torch_nor_tensorflow(folder):
    import subprocess

    code = (
        "import sys, numpy, afloc_jax; m = afloc_jax.load(sys.argv[1]);"
        "m.localize([numpy.zeros((50, 60), numpy.uint8)], ['small effusion']);"
        "print([n for n in ('torch', 'tensorflow', 'tensorflow_datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Heat maps


def test_localisation_equals_the_formula_in_scipy_and_torch(model, pictures):
    found = model.localize(pictures, PROMPTS)
    images, texts = model.embed_images(pictures), model.embed_texts(PROMPTS)
    assert [len(row) for row in found] == [3] * 5
    for i, row in enumerate(found):
        for k, result in enumerate(row):
            expected = reference_map(images.deep[i], texts.report[k], 224)
            np.testing.assert_allclose(result.square, expected, atol=2e-5 * np.abs(expected).max())
            cosine = scipy.spatial.distance.cosine(images.whole[i], texts.report[k])
            assert result.similarity == pytest.approx(1 - cosine, abs=1e-5)
            assert result.heatmap.shape == pictures[i].shape
            assert result.heatmap.dtype == np.float32
            assert np.isfinite(result.heatmap).all()
    assert [result.prompt for result in found[0]] == [
        "small left pleural effusion",
        "right upper lobe nodule. no edema",
        "pneumonia",
    ]


def test_boxes_enclose_what_exceeds_the_threshold_in_original_pixels(model, pictures):
    result = model.localize(pictures[:1], PROMPTS[:1], threshold=0.2)[0][0]
    low, high = result.heatmap.min(), result.heatmap.max()
    hot = (result.heatmap - low) / (high - low) * 2 - 1 > 0.2
    covered = np.zeros_like(hot)
    for x, y, width, height in result.boxes:
        assert x >= 0 and y >= 0 and x + width <= 131 and y + height <= 97
        part = hot[y : y + height, x : x + width]
        assert part.any(axis=0)[[0, -1]].all() and part.any(axis=1)[[0, -1]].all()  # tight
        covered[y : y + height, x : x + width] = True
    assert covered[hot].all()
    assert len(result.boxes) == scipy.ndimage.label(hot)[1]


def test_a_map_at_original_size_points_where_the_square_does(model):
    picture = np.zeros((400, 100), np.uint8)  # tall: a quarter of the square is image
    picture[300:340, 20:60] = 255
    result = model.localize([picture], PROMPTS[:1])[0][0]
    inner = result.square[:, 84:140]
    np.testing.assert_allclose(result.heatmap[::40, ::20].mean(), inner[::22, ::11].mean(), rtol=0.05)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(inner.copy())[None, None], (400, 100), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(result.heatmap, expected, atol=1e-4 * np.abs(expected).max())


def test_an_image_gives_the_same_map_alone_and_in_company(model, pictures):
    squares = np.stack([to_square(picture, 224)[0] for picture in pictures])
    rows, prompts = np.array([4, 0, 2, 0, 4, 1]), [PROMPTS[k] for k in (0, 1, 0, 0, 2, 2)]
    together = model.heatmaps_of_pairs(squares, rows, prompts)
    alone = [model.heatmaps_of_squares(squares[[row]], [prompt])[0] for row, prompt in zip(rows, prompts, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())


def test_many_batch_sizes_compile_few_shapes(folder, pictures):
    model = afloc_jax.load(folder, batch_size=4)
    programs.encode_images.clear_cache()
    for count in (1, 2, 3, 4, 5):
        assert model.embed_images(pictures[:count]).whole.shape == (count, 32)
    assert programs.encode_images._cache_size() == 3  # 1, 2, 4
    model.untrained().embed_images(pictures)
    assert programs.encode_images._cache_size() == 3  # the same network


def test_a_prompt_is_encoded_once_and_in_few_slots(folder, pictures, monkeypatch):
    model, encode, seen = afloc_jax.load(folder), programs.encode_texts, []

    def counted(network, variables, tokens, slots):
        seen.append(tokens.token_ids.shape)
        return encode(network, variables, tokens, slots)

    monkeypatch.setattr(programs, "encode_texts", counted)
    first = model.localize(pictures[:1], PROMPTS)[0]
    assert seen == [(4, 16)]  # three prompts of up to 8 tokens; `max_tokens` is 24
    again = model.localize(pictures[:1], ["Right upper lobe nodule. No edema", PROMPTS[0]])[0]
    model.heatmaps_of_squares(np.zeros((1, 64, 64), np.uint8), PROMPTS[2:])
    assert len(seen) == 1
    np.testing.assert_array_equal(again[0].square, first[1].square)
    assert again[1].similarity == first[0].similarity
    model.classify(pictures[:1], ["edema"])
    model.classify(pictures[:1], ["edema"])
    assert seen[1:] == [(2, 16)]
    monkeypatch.setattr(model, "heatmap_settings", HeatmapSettings(prompt_level="sentence"))
    model.localize(pictures[:1], PROMPTS)
    assert len(seen) == 3  # another query of the same prompts


def test_no_more_prompts_are_remembered_than_is_said(folder, monkeypatch):
    monkeypatch.setattr(towers, "_REMEMBERED_PROMPTS", 2)
    model = afloc_jax.load(folder)
    texts = ["edema", "nodule", "effusion"]
    each = [model.embed_prompts([text])[0] for text in texts]
    assert [text for _, text in model._prompts.kept()] == ["nodule", "effusion"]
    np.testing.assert_allclose(model.embed_prompts(texts[::-1]), each[::-1], rtol=1e-5, atol=1e-6)
    assert [text for _, text in model._prompts.kept()] == ["nodule", "edema"]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("context", ["report", "sentence"])
def test_cut_slots_change_no_level(folder, normalize, context):
    config, variables, tokenizer = load_model(folder)
    text = dataclasses.replace(config.architecture.text, context=context)
    architecture = dataclasses.replace(config.architecture, normalize=normalize, text=text)
    model = Model(dataclasses.replace(config, architecture=architecture), variables, tokenizer)
    found = model.embed_texts(PROMPTS)
    tokens = TokenBatch(**tokenize(tokenizer, model.read_prompts(PROMPTS), 24))
    expected = build(architecture).apply(variables, tokens, method="encode_text")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert found.words.shape == (3, 24, 32)


def test_boxes_are_those_of_the_normalised_map_and_are_computed_when_they_are_read(model, pictures):
    for threshold in (-0.6, 0.0, 0.3, 0.8):
        for result in model.localize(pictures[:3], PROMPTS[:1], threshold):
            assert not {"heatmap", "boxes"} & vars(result[0]).keys()
            scaled = heatmaps.normalise(result[0].heatmap.astype(np.float64), -1, 1)
            np.testing.assert_array_equal(result[0].boxes, heatmaps.boxes_from_map(scaled, threshold))
    flat = Localization(np.ones((8, 8), np.float32), 0.0, "nothing", Geometry(20, 10, 8), -0.9)
    assert flat.boxes.shape == (0, 4)


def test_files_and_arrays_of_the_same_pixels_agree(model, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    from_file = model.localize([tmp_path / "a.png"], PROMPTS[:1])[0][0]
    from_array = model.localize([pictures[0]], PROMPTS[:1])[0][0]
    np.testing.assert_array_equal(from_file.heatmap, from_array.heatmap)


def test_the_untrained_model_depends_on_the_seed_of_the_run_alone(model, pictures):
    first = model.untrained().heatmaps_of_squares(np.zeros((1, 64, 64), np.uint8), PROMPTS[:1])
    second = model.untrained().heatmaps_of_squares(np.zeros((1, 64, 64), np.uint8), PROMPTS[:1])
    np.testing.assert_array_equal(first, second)
    assert first.shape == (1, 64, 64)


def test_damaged_weights_are_told_instead_of_giving_maps_of_nan(folder, pictures):
    config, variables, tokenizer = load_model(folder)
    broken = Model(config, jax.tree.map(lambda x: x * np.nan, variables), tokenizer)
    with pytest.raises(UserError, match="NaN"):
        broken.localize(pictures[:1], PROMPTS[:1])


@pytest.mark.parametrize(
    ("images", "prompts", "threshold", "words"),
    [
        ([], ["effusion"], 0.3, "no images"),
        ("a.png", ["effusion"], 0.3, "must be a list"),
        ([np.zeros((20, 20), np.uint8)], [], 0.3, "no prompts"),
        ([np.zeros((20, 20), np.uint8)], "effusion", 0.3, "must be a list"),
        ([np.zeros((20, 20), np.uint8)], ["effusion"], 1.0, "between -1 and 1"),
        ([np.zeros((20, 20, 5), np.uint8)], ["effusion"], 0.3, r"\[20, 20, 5\]"),
        ([np.zeros((20, 20), bool)], ["effusion"], 0.3, "bool"),
    ],
)
def test_a_wrong_call_says_what_to_give_instead(model, images, prompts, threshold, words):
    with pytest.raises(UsageError, match=words):
        model.localize(images, prompts, threshold)


def test_an_empty_prompt_is_refused(model, pictures):
    with pytest.raises(UserError, match="empty"):
        model.localize(pictures[:1], [" . "])


# Classification


def test_probabilities_are_the_softmax_of_positive_against_negative(model, pictures):
    prompts = {"edema": ["mild edema", "severe edema"], "nodule": {"positive": ["a nodule"], "negative": ["clear"]}}
    found = model.classify(pictures, ["edema", "nodule", "pneumonia"], prompts)
    whole = model.embed_images(pictures).whole.astype(np.float64)
    texts = ["mild edema", "severe edema", "no edema. ", "a nodule", "clear"]
    texts += ["Findings suggesting pneumonia.", "no pneumonia. "]
    report = model.embed_texts(texts).report.astype(np.float64)
    pairs = [(report[:2].mean(0), report[2]), (report[3], report[4]), (report[5], report[6])]
    expected = np.stack([scipy.special.softmax(whole @ np.stack(pair).T, axis=1)[:, 0] for pair in pairs], axis=1)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_largest_score_of_a_class_may_stand_for_it(model, pictures):
    prompts = {"edema": {"positive": ["mild edema", "severe edema"], "negative": ["clear", "no edema"]}}
    found = model.classify(pictures, ["edema"], prompts, aggregation="max")[:, 0]
    whole = model.embed_images(pictures).whole.astype(np.float64)
    report = model.embed_texts(["mild edema", "severe edema", "clear", "no edema"]).report.astype(np.float64)
    logits = np.stack([(whole @ report[:2].T).max(axis=1), (whole @ report[2:].T).max(axis=1)], axis=1)
    np.testing.assert_allclose(found, scipy.special.softmax(logits, axis=1)[:, 0], atol=1e-4)
    with pytest.raises(UsageError, match="unknown aggregation 'median'; there are mean, max"):
        model.classify(pictures, ["edema"], prompts, aggregation="median")


def test_word_lists_give_every_combination_as_a_phrase():
    positive, negative = PromptSet(
        classes={"effusion": {"severity": ["small", "large"], "location": ["left", "right"]}}
    ).prompts("effusion")
    assert positive == ["small left", "small right", "large left", "large right"]
    assert negative == ["no effusion. "]
    assert PromptSet().prompts("No Finding") == (["no finding"], ["finding"])
    assert PromptSet().prompts("edema") == (["Findings suggesting edema."], ["no edema. "])


@pytest.mark.parametrize("given", [[], [""], "", {"positive": []}, {"colour": ["red"]}, 3, {}])
def test_unusable_class_prompts_are_refused(given):
    with pytest.raises(UsageError, match="edema"):
        PromptSet(classes={"edema": given})


def test_a_multiclass_set_is_a_softmax_over_classes(model, pictures):
    tissue = PromptSet(classes={"a": ["tumor"], "b": ["stroma", "fibrous stroma"]}, multiclass=True)
    found = model.classify(pictures, ["a", "b"], tissue)
    report = model.embed_texts(["tumor", "stroma", "fibrous stroma"]).report.astype(np.float64)
    logits = model.embed_images(pictures).whole.astype(np.float64) @ np.stack([report[0], report[1:].mean(0)]).T
    np.testing.assert_allclose(found, scipy.special.softmax(logits, axis=1), atol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_a_cropped_square_is_what_the_model_sees(model, pictures):
    cropped = np.stack([crop_to_square(picture, 224) for picture in pictures])
    expected = model.classify_embedded(model.embed_squares(cropped).whole, ["edema"], PromptSet())
    np.testing.assert_allclose(model.classify(pictures, ["edema"], framing="crop"), expected, atol=1e-6)
    assert not np.allclose(model.classify(pictures, ["edema"]), expected, atol=1e-6)
    with pytest.raises(UsageError, match="pad, crop"):
        model.classify(pictures, ["edema"], framing="stretch")


# The published release


def test_end_to_end_numbers_equal_the_published_release(goldens, shared_data):
    """Image file and prompt in, heat map and probability out: ResNet-50 and BERT-base, filled by name."""
    sys.path.insert(0, str(goldens))
    from fill import fill

    description = json.loads((goldens / "end_to_end.json").read_text())
    expected = np.load(goldens / "end_to_end.npz")
    shapes = json.loads((goldens / "state_dict_shapes_full.json").read_text())
    config = get_config()
    config.model.text.bert.vocab_size = shapes["text_encoder.model.embeddings.word_embeddings.weight"][0]
    state = {name: fill(description["fill_prefix"] + name, shape) for name, shape in shapes.items()}
    stored = FolderConfig.of_run(config, {})
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-cased-vocab.txt")
    model = Model(stored, torch_names.from_torch(state, stored.architecture), tokenizer)

    images = [shared_data / "covid_lesions" / "images" / name for name in description["images"]]
    prompts, stride = description["prompts"], description["heatmap_stride"]
    read = model.read_prompts(prompts, compatible=True)
    ids = tokenize(tokenizer, read, 97)["token_ids"]
    for k in range(len(prompts)):
        np.testing.assert_array_equal(ids[k], expected[f"prompt{k}/input_ids"])
    for i, path in enumerate(images):
        np.testing.assert_array_equal(to_square(path, 224)[0], expected[f"image{i}/pixels"])

    found = model.localize(images, prompts, compatible=True)
    for i, row in enumerate(found):
        for k, result in enumerate(row):
            theirs = expected[f"image{i}/heatmap{k}"]
            ours = result.square[::stride, ::stride]
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] >= 0.99999

    contrast = {
        "positive": [prompts[k] for k in description["positive_prompts"]],
        "negative": [prompts[description["negative_prompt"]]],
    }
    probabilities = model.classify(images, ["finding"], {"finding": contrast}, compatible=True)[:, 0]
    np.testing.assert_allclose(probabilities, expected["classification/prob_positive"], atol=1e-4)


def test_sentence_prompts_leave_out_the_markers_that_every_prompt_shares(model, monkeypatch):
    """The map then asks with the mean of the prompt's sentence units, without `[CLS]` and `[SEP]`."""
    texts = model.embed_texts(["small left effusion. no pneumothorax"])
    np.testing.assert_array_equal(model._queries(texts), texts.report)
    monkeypatch.setattr(model, "heatmap_settings", HeatmapSettings(prompt_level="sentence"))
    np.testing.assert_allclose(model._queries(texts)[0], texts.sentences[0, 1:3].mean(axis=0), rtol=1e-6)


def test_a_presence_map_lies_between_0_and_1_and_settings_come_from_the_folder(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    stored = json.loads((copy / "config.json").read_text())
    stored["localization"] = {"similarity": "presence", "presence_threshold": 0.1, "prompt_level": "sentence"}
    (copy / "config.json").write_text(json.dumps(stored))
    model = afloc_jax.load(copy)
    assert model.heatmap_settings == HeatmapSettings(
        similarity="presence", presence_threshold=0.1, prompt_level="sentence"
    )
    image = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    found = model.localize([image], ["small left effusion"])[0][0]
    assert found.heatmap.shape == (60, 80) and 0 < found.heatmap.min() < found.heatmap.max() < 1
