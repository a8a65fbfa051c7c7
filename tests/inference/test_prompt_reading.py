"""How a model reads a prompt: unknown words, empty prompts, prompts that are cut."""

import dataclasses
import json
import tarfile
from xml.etree import ElementTree

import cv2
import pytest

import afloc_jax
from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.export.write import export_model
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.inference.files import classify_files, localize_files
from afloc_jax.inference.prompt_reading import PromptReading, read_prompt, report_readings
from afloc_jax.weights.folder import load_model, save_state
from afloc_jax.weights.torch_names import to_torch
from data_pipelines.reports import clean_sections
from data_pipelines.tokens import learn_tokenizer
from data_pipelines.vocabulary import unseen_pieces

REPORTS = [["small left effusion", "no edema"], ["a nodule of 1.5 cm"]]
LONG = "small left effusion " * 9  # 27 words, the model has room for 22


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer([". ".join(report) for report in REPORTS])


@pytest.fixture(scope="module")
def knowing(folder, tmp_path_factory):
    """The tiny model folder, with the knowledge of which pieces its four training texts hold."""
    config, variables, words = load_model(folder)
    texts = ["small left pleural effusion", "findings suggesting pneumonia", "no pneumothorax", "no edema", "nodule"]
    config = dataclasses.replace(config, unseen_pieces=unseen_pieces(words, [[text] for text in texts]))
    target = tmp_path_factory.mktemp("knowing") / "model"
    save_state(target, to_torch(variables, config.architecture), config, words)
    return target


@pytest.fixture
def picture(tmp_path, pictures):
    cv2.imwrite(str(tmp_path / "a.png"), pictures[0])
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("prompt", "by_piece", "by_unk"),
    [
        ("Small LEFT effusion.", (), ()),
        ("small lesion, no nodules.", ("lesion", "nodules"), ()),  # made of known letters
        ("zebra. No zebra, small zoo", ("zebra", "zoo"), ("zebra", "zoo")),  # z is no letter of the reports
        ("derrame pequeño", ("derrame", "pequeno"), ("derrame", "pequeno")),
        ("плевральный выпот", ("плевральный", "выпот"), ("плевральный", "выпот")),
        ("a" * 400, ("a" * 400,), ("a" * 400,)),
        ("a nodule of 1.5 cm. edema", (), ()),
        ("a nodule of 2.5 cm", ("2.5",), ("2.5",)),
    ],
)
def test_unknown_words_are_those_with_a_piece_that_no_report_held(tokenizer, prompt, by_piece, by_unk):
    unseen = unseen_pieces(tokenizer, REPORTS)
    assert not unseen & {"small", "left", "effusion", "no", "edema", ".", "[UNK]", "[CLS]"} and "##f" in unseen
    assert read_prompt(prompt, tokenizer, 24, unseen).unknown_words == by_piece
    assert read_prompt(prompt, tokenizer, 24).unknown_words == by_unk, "without that knowledge [UNK] alone counts"


@pytest.mark.parametrize("words", [7, 8])
def test_a_prompt_is_truncated_where_its_last_piece_has_no_slot(tokenizer, words):
    reading = read_prompt(" ".join(["edema"] * words), tokenizer, 9)
    assert reading.truncated == (words == 8) and reading.unknown_words == ()


def test_real_reports_leave_half_of_their_vocabulary_unseen_and_misspellings_are_told(shared_data):
    """A vocabulary learned from Indiana's reports: 3,927 of them have a sentence."""
    reports = []
    with tarfile.open(shared_data / "iu_reports" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                texts = ElementTree.fromstring(archive.extractfile(member).read()).iter("AbstractText")
                parts = {node.get("Label"): node.text or "" for node in texts}
                reports.append(clean_sections(parts.get("FINDINGS", ""), parts.get("IMPRESSION", ""), False).sentences)
    reports = [sentences for sentences in reports if sentences]
    learned = learn_tokenizer(". ".join(sentences) for sentences in reports)
    unseen = unseen_pieces(learned, reports)
    assert (len(reports), learned.get_vocab_size(), len(unseen)) == (3927, 4096, 1940)
    for prompt, unknown in (
        ("zebra crossing on the moon", ("zebra", "moon")),
        ("cardiomegally", ("cardiomegally",)),
        ("pulmonary oedema", ("oedema",)),
        ("Findings suggesting pneumonia.", ()),
        ("small left pleural effusion", ()),
    ):
        assert read_prompt(prompt, learned, 97, unseen).unknown_words == unknown
        assert read_prompt(prompt, learned, 97).unknown_words == (), "nothing is [UNK]"


def test_an_empty_prompt_has_no_text_and_every_fault_is_in_one_line(tokenizer):
    assert read_prompt(" 12. ", tokenizer, 9) == PromptReading(" 12. ", "")
    assert read_prompt("edema", tokenizer, 9, compatible=True).text == "", "the release drops one-word sentences"
    assert read_prompt("!!", tokenizer, 9).complaint == "prompt '!!': empty after cleaning: it has no word"
    both = read_prompt("zebra " * 20, tokenizer, 9).complaint
    assert "unknown words: zebra; too long: its end is not read" in both and "\n" not in both and len(both) < 150
    assert read_prompt("edema", tokenizer, 9).complaint == ""


def test_faults_are_named_on_stderr_or_refused(tokenizer, capsys):
    readings = [read_prompt(f"edema {'z' * k}", tokenizer, 9) for k in range(8)]
    report_readings(readings, strict=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "afloc: prompt 'edema z': unknown words: z" and len(lines) == 6
    assert lines[-1] == "afloc: 2 more prompts of that kind, named in the JSON file"
    with pytest.raises(UsageError, match=r"--strict: prompt 'edema z': unknown words: z; .*; and 2 more$"):
        report_readings(readings, strict=True)
    report_readings(readings[:1], strict=True)
    assert capsys.readouterr().err == ""


def test_the_knowledge_is_kept_with_the_model_folder_and_its_copies(knowing, folder, tmp_path):
    model = afloc_jax.load(knowing)
    assert model.examine(["lesion", "edema"])[0].unknown_words == ("lesion",)
    assert model.untrained().config.unseen_pieces == model.config.unseen_pieces
    copy = export_model(knowing, tmp_path / "copy", "safetensors")
    assert load_model(copy).config.unseen_pieces == model.config.unseen_pieces
    assert "unseen_pieces" not in (knowing / "config.json").read_text()
    assert load_model(folder).config.unseen_pieces is None, "a folder of an earlier version"
    assert afloc_jax.load(folder).examine(["lesion"])[0].unknown_words == ()


def test_localize_names_faults_in_its_json_on_stderr_and_in_python(knowing, picture, capsys):
    prompts = ["small left effusion", "zebra lesion", " 12. ", LONG]
    call = ["localize", str(knowing), str(picture), "--out", str(picture.parent / "out")]
    assert main([*call, *(f"--prompt={prompt}" for prompt in prompts)]) == 0
    said = capsys.readouterr().err
    assert "afloc: prompt 'zebra lesion': unknown words: zebra, lesion" in said
    assert "afloc: prompt ' 12. ': empty after cleaning" in said and "too long: its end is not read" in said
    out = picture.parent / "out"
    entries = json.loads((out / "localize.json").read_text())["images"][0]["prompts"]
    assert [entry["given"] for entry in entries] == prompts
    assert [entry["unknown_words"] for entry in entries] == [[], ["zebra", "lesion"], [], []]
    assert [entry["truncated"] for entry in entries] == [False, False, False, True]
    assert entries[2]["prompt"] == "" and "heatmap" not in entries[2]
    assert [entry.get("heatmap") for entry in entries if entry["prompt"]] == [f"a.{k}.heatmap.npy" for k in (0, 1, 3)]
    assert sorted(path.name for path in out.glob("*.npy")) == [f"a.{k}.heatmap.npy" for k in (0, 1, 3)]
    found = afloc_jax.load(knowing).localize([picture], [prompts[1], prompts[3]])[0]
    assert [(f.unknown_words, f.truncated) for f in found] == [(("zebra", "lesion"), False), ((), True)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("zebra", "unknown words: zebra"), (LONG, "its end is not read"), ("12", "empty after cleaning")],
)
def test_strict_refuses_before_anything_is_written(knowing, picture, prompt, words, capsys):
    out = picture.parent / "out"
    call = ["localize", str(knowing), str(picture), "--prompt=edema", f"--prompt={prompt}", "--out", str(out)]
    assert main([*call, "--strict"]) == 2
    said = capsys.readouterr().err
    assert words in said and "--strict" in said and said.count("\n") == 1 and not list(out.glob("*"))
    assert main(["localize", *call[1:3], "--prompt=edema", "--out", str(out), "--strict"]) == 0


def test_classify_names_faults_and_leaves_empty_phrases_out(knowing, picture, capsys):
    prompts = picture.parent / "prompts.json"
    prompts.write_text(json.dumps({"edema": ["no edema", "12", "zebra"], "nodule": [LONG]}))
    out = picture.parent / "scores.csv"
    call = ["classify", str(knowing), str(picture), "--prompts", str(prompts), "--out", str(out)]
    assert main(call) == 0
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["unknown_words"] == {"zebra": ["zebra"]} and content["truncated"] == [LONG]
    assert content["empty"] == ["12"] and content["prompts"]["edema"]["positive"] == ["no edema", "zebra"]
    said = capsys.readouterr().err
    assert "prompt '12': empty after cleaning" in said and "unknown words: zebra" in said
    kept = {"edema": ["no edema", "zebra"], "nodule": [LONG]}
    expected = afloc_jax.load(knowing).classify([picture], [*kept], PromptSet(classes=kept))[0]
    row = out.read_text().splitlines()[1].split(",")[1:]
    assert [float(cell) for cell in row] == pytest.approx(expected.tolist(), abs=1e-5)
    assert main([*call, "--strict"]) == 2 and "--strict: prompt" in capsys.readouterr().err
    prompts.write_text(json.dumps({"edema": ["12"], "nodule": ["nodule"]}))
    with pytest.raises(UsageError, match="empty after cleaning"):  # nothing is left to ask for edema
        classify_files(knowing, [picture], None, out, prompts=prompts)
    with pytest.raises(UsageError, match=r"'\?\?' is empty"):  # "Findings suggesting ??." asks for nothing
        classify_files(knowing, [picture], ["nodule", "??"], out)


def test_retrieve_names_queries_that_are_not_understood(knowing, picture, capsys):
    call = ["retrieve", str(knowing), "--images", str(picture), "--query", "zebra lesion"]
    assert main(call) == 0
    assert capsys.readouterr().err == "afloc: prompt 'zebra lesion': unknown words: zebra, lesion\n"
    assert main([*call, "--strict"]) == 2 and "--strict: prompt" in capsys.readouterr().err


def test_all_prompts_empty_is_an_error_before_the_model_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="empty after cleaning"):
        localize_files(tmp_path / "none", [tmp_path / "a.png"], ["12", " . "], tmp_path / "out")


def test_a_model_that_knows_its_words_reads_prompts_as_before(knowing, folder, pictures):
    ours, theirs = (afloc_jax.load(place).localize(pictures[:1], [LONG])[0][0] for place in (knowing, folder))
    assert ours.prompt == theirs.prompt and (ours.square == theirs.square).all()
