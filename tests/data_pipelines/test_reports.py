"""Reports become sentences; prompts are read by the same rules."""

import json
import re
import tarfile
import time
import unicodedata
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from afloc_jax.errors import UserError
from data_pipelines.reports import (
    clean_prompt,
    clean_report,
    clean_sections,
    fold,
    rejected_sentences,
    sections,
    split_sentences,
)


def test_compatible_cleaning_equals_the_release_on_every_reference_report(goldens):
    entries = json.loads((goldens / "report_cleaning.json").read_text())
    assert len(entries) == 64
    for entry in entries:
        report = clean_report(entry["findings"], entry["impression"], compatible=True)
        expected = (entry["sentences"] or [], entry["n_impression"] or 0)
        assert (report.sentences, report.impression_count) == expected, entry["id"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edema", ["edema"]),
        ("1.5 cm nodule", ["1.5 cm nodule"]),
        ("ET tube 3.2 cm above carina.Lungs: clear; no ptx (stable).",
         ["et tube 3.2 cm above carina", "lungs clear", "no ptx stable"]),
        ("1. Stable 1.5 cm nodule.\n2. No effusion..  Clear", ["stable 1.5 cm nodule", "no effusion", "clear"]),
        ("1) Small effusion 2) Edema", ["small effusion", "edema"]),
        ("Fracture of rib 7. No effusion.", ["fracture of rib 7", "no effusion"]),
        ("Discussed with Dr. Smith. Heart normal vs. prior. See fig. 2. Is it? No.",
         ["discussed with dr smith", "heart normal vs prior", "see fig 2", "is it", "no"]),
        ("Nodule in\nthe left lung.\n\nNo effusion", ["nodule in the left lung", "no effusion"]),
        (".5 cm nodule. Sizes .3,.5 (.7)", ["0.5 cm nodule", "sizes 0.3,0.5 0.7"]),
        ("1. .5 cm nodule 2. Nodule of 2.1. Edema", ["0.5 cm nodule", "nodule of 2.1", "edema"]),
        ("Mass 1.2x1.5 cm", ["mass 1.2 x 1.5 cm"]),
        ("Mass 2X1.5cm, was 2cmx.5cm and 2 \u00d7 3", ["mass 2 x 1.5 cm was 2cm x 0.5 cm and 2 x 3"]),
        ("T1.5, V76.12 and L4", ["t1.5 v76.12 and l4"]),
        ("1½ cm, 2 ¾ cm, 1·5 cm, \u0661\u066b\u0665 край", ["1.5 cm 2.75 cm 1.5 cm \u0661.\u0665 край"]),
        ("Heart normal.5 mm nodule", ["heart normal 5 mm nodule"]),  # a forgotten blank, not a half
        ("café-au-lait lésion", ["cafe au lait lesion"]),
        ("肺炎。 пневмония", ["肺炎 пневмония"]),
        ("がん, हिंदी, ไข้, край", ["がん हिंदी ไข้ край"]),
        ("___. 3. --", []),
        ("", []),
    ],
)  # fmt: skip
def test_default_cleaning_keeps_the_content(text, expected):
    assert split_sentences(text) == expected


def test_no_letter_of_any_alphabet_is_changed():
    """Accents of Latin letters are folded; every other letter stays as it is, in its compatibility form."""
    for code in (*range(0x20, 0x3100), *range(0x4E00, 0x4F00), *range(0xAC00, 0xAD00), *range(0xF900, 0xFFFF)):
        letter = chr(code)
        if not unicodedata.category(letter).startswith("L"):
            continue
        compatible = unicodedata.normalize("NFKD", letter)
        if "LATIN" in unicodedata.name(compatible[0], ""):
            expected = [c for c in compatible.lower() if c.isalpha()]
        else:
            expected = [c for c in unicodedata.normalize("NFKC", letter).lower() if unicodedata.category(c)[0] in "LM"]
        if not expected or unicodedata.category(expected[0])[0] == "M":  # a vowel that stands behind a consonant only
            continue
        found = split_sentences(f"a {letter} b")
        kept = [c for c in found[0] if unicodedata.category(c)[0] in "LM"]
        assert len(found) == 1 and kept == ["a", *expected, "b"], hex(code)
    assert clean_prompt("\ud55c\uad6d") == "\ud55c\uad6d", "syllables are not taken apart"
    assert fold("x \u0301 2\u20e3") == "x  2", "a mark that stands on no letter goes"


def test_every_number_of_random_sentences_keeps_its_value():
    """Whatever a number is written together with, it is found in the cleaned text, in its place."""
    random = np.random.default_rng(0)
    # What stands before the first, between both and behind the second, each with the number that it holds.
    before = {
        "nodule ": [],
        "(": [],
        "T": [],
        "-": [],
        "~": [],
        "from 3 to ": [3],
        "/": [],
        ", ": [],
        ". Mass ": [],
        "<": [],
    }
    between = [
        " cm. Edema of ",
        "x",
        " x ",
        "X",
        "cmx",
        " mm x ",
        "\u00d7",
        " - ",
        "/",
        "cm, ",
        " (",
        "; was ",
        ": ",
        " to ",
    ]
    after = {
        "": [],
        " cm": [],
        "cm": [],
        "mm nodule": [],
        ")": [],
        ".": [],
        ". Edema": [],
        "x": [],
        "%": [],
        "/2 ml": [2],
    }
    for _ in range(3000):
        digits = random.integers(0, 4, 2)
        first, second = (f"{value:.{n}f}" for value, n in zip(random.uniform(0, 20, 2), digits, strict=True))
        opening, joint, end = (list(options)[random.integers(len(options))] for options in (before, between, after))
        if first.startswith("0.") and opening != "T" and random.random() < 0.7:
            first = first[1:]  # ".5"; after a letter the point would end a sentence
        if second.startswith("0.") and joint[-1] not in "xX" and random.random() < 0.7:
            second = second[1:]
        text = f"edema {opening}{first}{joint}{second}{end}"
        found = [float(number) for number in re.findall(r"\d*[.]?\d+", " ".join(split_sentences(text)))]
        assert found == [*before[opening], float(first), float(second), *after[end]], text


@pytest.mark.parametrize("word", ["pneumonia", "edema", "Pneumothorax.", "3", "COVID-19", "\u80ba\u708e", "1.5cm"])
def test_prompts_of_one_word_are_kept_and_numbers_alone_are_refused(word):
    if word == "3":
        with pytest.raises(UserError, match="empty after cleaning"):
            clean_prompt(word)
    else:
        assert clean_prompt(word) == word.lower().strip(".").replace("-", " ").replace("1.5cm", "1.5 cm")


def test_what_is_left_out_is_listed_with_the_reason():
    assert rejected_sentences("1. Edema. 3. ... -- . Clear.") == [
        ("3", "a number alone"),
        ("--", "no letter and no digit"),
    ]
    assert rejected_sentences("Nodule of 1.5 cm. Edema") == []


def test_impression_comes_first_and_repeated_sentences_count_once():
    report = clean_report("No effusion. Heart is normal. No effusion.", "Heart is normal. Edema.")
    assert report.sentences == ["heart is normal", "edema", "no effusion"]
    assert report.impression_count == 2


def test_sections_are_split_at_their_headings():
    text = "CHEST PA\nINDICATION: cough\nFINDINGS:\nLungs clear.\nNo findings: of note\nImpression : Normal."
    text += "\nCONCLUSION: Same."
    assert sections(text) == {
        "": "CHEST PA",
        "indication": "cough",
        "findings": "Lungs clear.\nNo findings: of note",  # a heading stands at the start of a line
        "impression": "Normal.\nSame.",
    }
    assert sections("") == {}


def test_the_release_reads_the_impression_last_and_records_have_it_first():
    """Its reports end with the impression. The rule that cuts them after exactly five words sees the findings first."""
    report = clean_sections("Heart is normal. No effusion is seen", "No acute disease. No edema.", compatible=True)
    # The missing period joins the last finding to the first sentence of the impression, as there.
    assert report.sentences == ["no effusion is seen no acute disease", "no edema", "heart is normal"]
    assert report.impression_count == 2
    cut = clean_sections("Both lungs are clear today. No effusion.", "No acute disease.", compatible=True)
    assert (cut.sentences, cut.impression_count) == (["both lungs are clear today"], 1)
    alone = clean_sections("", "No acute disease. Heart is normal.", compatible=True)
    assert (alone.sentences, alone.impression_count) == (["no acute disease", "heart is normal"], 2)
    ours = clean_sections("Heart is normal. No effusion is seen", "No acute disease.", compatible=False)
    assert ours.sentences == ["no acute disease", "heart is normal", "no effusion is seen"]


def test_prompts_are_refused_when_nothing_is_left():
    assert clean_prompt(" Findings suggesting pneumonia. ") == "findings suggesting pneumonia"
    assert clean_prompt("No pneumothorax. Edema") == "no pneumothorax. edema"
    assert clean_prompt("no pneumothorax. heart is normal", compatible=True) == "no pneumothorax heart is normal"
    for text, compatible in (("", False), (" .. ", False), ("pneumonia", True)):
        with pytest.raises(UserError, match="empty after cleaning"):
            clean_prompt(text, compatible=compatible)


def test_every_report_of_a_real_collection_is_cleaned(shared_data):
    count = empty = 0
    with tarfile.open(shared_data / "iu_reports" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if not member.name.endswith(".xml"):
                continue
            root = ElementTree.fromstring(archive.extractfile(member).read())
            parts = {node.get("Label"): node.text or "" for node in root.iter("AbstractText")}
            report = clean_report(parts["FINDINGS"], parts["IMPRESSION"])
            clean_report(parts["FINDINGS"], parts["IMPRESSION"], compatible=True)
            count += 1
            empty += not report.sentences
            assert 0 <= report.impression_count <= len(report.sentences)
            assert all(s and s == s.lower().strip() and "  " not in s for s in report.sentences), member.name
            written = bool(parts["FINDINGS"].strip("XxNn/A. ") or parts["IMPRESSION"].strip("XxNn/A. "))
            assert bool(report.sentences) or not written, member.name
            for text in parts.values():
                left_out = [piece for piece, _ in rejected_sentences(text or "")]  # such as "486. V76.12."
                kept = " ".join(split_sentences(text or "") + left_out)
                for decimal in re.findall(r"\d+[.]\d+|(?<![A-Za-z.])[.]\d+", text or ""):
                    assert decimal in kept, member.name
    assert (count, empty) == (3955, 28)


@pytest.mark.parametrize("unit", [" ", "\n", ".", "1", "1.", "1 x ", "dr. ", "FINDINGS:\n"], ids=ascii)
def test_the_time_of_a_text_is_that_of_its_length(unit):
    """64 kB and 512 kB of blanks, periods or digits in a row, numbered lists, abbreviations, headings, accents."""

    def seconds(size):
        text = f"\u00e9{unit * (size // len(unit))}"  # not ASCII, for which some rules are skipped
        began = time.process_time()
        split_sentences(text)
        sections(text)
        clean_report(text, compatible=True)
        return time.process_time() - began

    small, large = (min(seconds(size) for _ in range(5)) for size in (2**16, 2**19))
    assert large < 12 * small
