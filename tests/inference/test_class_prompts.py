"""Prompt sets: what a file may hold, what is said about one that cannot be used, and the sets of this package."""

import json

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.inference.class_prompts import SETS, PromptSet, find_class, read_prompt_set
from data_pipelines.reports import clean_prompt


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


def test_both_forms_of_a_file_say_the_same(write):
    short = read_prompt_set(write({"edema": ["mild edema"]}))
    full = read_prompt_set(write({"description": "mine", "classes": {"edema": ["mild edema"]}}))
    assert short == full
    assert short.prompts("Edema") == (["mild edema"], ["no Edema. "])
    assert short.prompts("nodule") == (["Findings suggesting nodule."], ["no nodule. "])
    assert read_prompt_set(None).prompts("Pleural_Thickening")[1] == ["no Pleural Thickening. "]


def test_word_lists_fill_the_template_in_every_combination(write):
    words = {"severity": ["", "mild"], "subtype": ["edema"], "location": ["", "at the bases"]}
    found = read_prompt_set(write({"template": "{class}:{severity} {subtype} {location}", "classes": {"edema": words}}))
    assert found.prompts("edema")[0] == [
        "edema: edema",
        "edema: edema at the bases",
        "edema:mild edema",
        "edema:mild edema at the bases",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not valid JSON at line 1"),
        ([], "must be an object"),
        ('{"edema": ["a"], "edema": ["b"]}', "a key comes twice in the object that ends at line 1, column 32"),
        ({"edema": ["a"], "Edema": ["b"]}, "same class"),
        ({"classes": {"edema": ["a"]}, "clases": {}}, "unknown key 'clases'"),
        ({"classes": ["edema"]}, "must be an object of class"),
        ({"edema": []}, "class 'edema' must be a list of at least one text"),
        ({"edema": [" "]}, "none of them empty"),
        ({"edema": {"positive": ["a"], "colour": ["red"]}}, "keys colour, positive"),
        ({"edema": {"severity": [""]}}, "at least one text"),
        ({"template": "{class} {size}", "classes": {"edema": ["a"]}}, "field 'size'"),
        ({"template": "{class", "classes": {"edema": ["a"]}}, "must be a text"),
        ({"negative": "nothing", "classes": {"edema": ["a"]}}, "no field; use {class}"),
        ({"negative": "{class:>1000000000}", "classes": {"edema": ["a"]}}, "field 'class:'; use {class}"),
        ({"fallback": "{class!r}", "classes": {"edema": ["a"]}}, "field 'class!'; use {class}"),
        ({"edema": {"severity": ["a"] * 101, "location": ["b"] * 100}}, "make more than 10,000 phrases"),
        ({"multiclass": "yes", "classes": {"edema": ["a"]}}, "true or false"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(write, content, words):
    path = write(content)
    with pytest.raises(UsageError) as caught:
        read_prompt_set(path)
    assert words in str(caught.value)
    assert "mine.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither_file_nor_set_lists_the_sets():
    with pytest.raises(UsageError, match="chest"):
        read_prompt_set("chets")


@pytest.mark.parametrize("name", SETS)
def test_every_set_of_this_package_can_be_read_and_asked(name):
    found = read_prompt_set(name)
    assert isinstance(found, PromptSet) and found.name == name and (len(found.classes) >= 3 or name == "plain")
    for label in found.classes:
        positive, negative = found.prompts(label)
        assert len(set(positive)) == len(positive)
        for compatible in (False, True):
            assert all(clean_prompt(text, compatible=compatible) for text in positive)
        assert all(clean_prompt(text) for text in negative)


def test_a_class_is_found_under_its_synonym_unless_it_has_an_entry_of_its_own():
    ours = PromptSet(classes={"pleural effusion": ["fluid"], "edema": ["wet lungs"]})
    assert ours.prompts("Effusion") == (["fluid"], ["no Effusion. "])
    both = PromptSet(classes={"pleural effusion": ["fluid"], "effusion": ["some fluid"]})
    assert both.prompts("effusion")[0] == ["some fluid"]
    assert ours.without_entry(["effusion", "pulmonary_edema", "mass"]) == ["mass"]
    assert find_class("pleural effusion", ["Effusion", "mass"]) == "Effusion" and find_class("cyst", ["mass"]) is None
