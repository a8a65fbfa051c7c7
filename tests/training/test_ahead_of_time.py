"""`afloc compile`: what it says of a run on devices that are not there."""

import json
import os
from types import SimpleNamespace

import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.training import ahead_of_time
from afloc_jax.training.buffers import Buffer
from afloc_jax.training.gpu_cards import CARDS, FRACTIONS
from afloc_jax.training.settings import LowRank, RunConfig
from afloc_jax.training.topology import chips_of_host
from configs.afloc import get_config
from tests.training.compiling import ROOT, compiled


def reported(batch, **facts):
    """A report on 16 chips."""
    facts = {"peak_bytes_per_chip": 0, "limit_bytes_per_chip": None, **facts}
    return ahead_of_time.MemoryReport("v5e:4x4", "step", 16, batch, **facts)


FOUR = ("--topology", "cpu:4", "--global_batch", "16", "--json")


@pytest.fixture(scope="module")
def report():
    """A run on four devices."""
    done = compiled(*FOUR, "--set", "loss.low_rank=true")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_on_four_devices_is_described(report):
    assert report["chips"] == 4 and report["global_batch"] == 16 and report["fits"] is True
    assert report["limit_bytes_per_chip"] is None
    assert report["low_rank"] == {"on": True, "why": "the config says so"}
    assert report["peak_bytes_per_chip"] >= report["argument_bytes_per_chip"] + report["temporary_bytes_per_chip"] > 0
    assert report["launches_per_step"] is None  # counted for GPUs
    # Regions of the two maps are 8 x 8 and 4 x 4; a tile of a CPU is a MiB.
    assert {level: (tile["images"], tile["units"]) for level, tile in report["tiles"].items()} == {
        "word": (4, 96),
        "sentence": (4, 96),
    }
    # Two rings of the local levels, forward and backward; batch statistics and gradients are added up.
    assert report["collectives"]["collective-permute"] >= 4
    assert report["collectives"]["all-reduce"] > 0
    assert report["ring_permutes"]["total"] >= 4 and report["ring_permutes"]["asynchronous"] == 0  # a CPU waits
    buffers = report["largest_buffers"]
    assert [kind["bytes"] for kind in buffers] == sorted((kind["bytes"] for kind in buffers), reverse=True)
    assert 0 < buffers[0]["bytes"] <= report["peak_bytes_per_chip"]


def test_the_losses_alone_take_embeddings_and_hold_less(report):
    part = json.loads(compiled(*FOUR, "--part", "loss").stdout)
    assert part["low_rank"] == {"on": True, "why": "words are compared in 4 dimensions instead of 16"}  # by default
    assert part["part"] == "loss" and part["collectives"]["collective-permute"] >= 4
    # What comes out are gradients of what goes in; the projected map, which no loss of low rank takes, is neither.
    results = part["peak_bytes_per_chip"] - part["argument_bytes_per_chip"] - part["temporary_bytes_per_chip"]
    assert results < 1.1 * part["argument_bytes_per_chip"]
    assert part["temporary_bytes_per_chip"] < report["temporary_bytes_per_chip"]


@pytest.mark.parametrize(
    ("topology", "there", "said", "error", "words"),
    [
        ("h100:8", False, "no cuda here", UserError, r'no GPU compiler; it comes with pip install "jax\[cuda13\]"'),
        ("v5e:4x4", False, "not installed", UserError, r'no TPU compiler; it comes with pip install "jax\[tpu\]"'),
        ("h100:8", True, "wrong version\n#1", UserError, r"the GPU compiler does not start \(wrong version\)$"),
        ("v5e:3x5", True, "INVALID_ARGUMENT: 3", UsageError, r"no such topology \(INVALID_ARGUMENT: 3\)$"),
    ],
)
def test_a_missing_compiler_is_told_from_a_topology_that_is_none(topology, there, said, error, words, monkeypatch):
    def refuse(**_):
        raise RuntimeError(said)

    monkeypatch.setattr(ahead_of_time.topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(ahead_of_time.importlib.util, "find_spec", lambda name: there or None)
    with pytest.raises(error, match=words) as caught:
        ahead_of_time.topology_devices(topology)
    assert type(caught.value) is error


def test_a_slice_smaller_than_a_host_is_a_host():
    assert [chips_of_host(f"v5e:{shape}") for shape in ("1x1", "1x4", "2x4", "16x16")] == [
        (1, 1, 1),
        (1, 2, 1),
        (2, 2, 1),
        (2, 2, 1),
    ]


def test_what_jax_takes_of_a_card_is_what_fits(monkeypatch):
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    assert ahead_of_time.memory_limit("a100:8") == 0.75 * 85100068864
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
    assert ahead_of_time.memory_limit("a100:8") == 0.75 * 85100068864
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert ahead_of_time.memory_limit("a100:8") == 0.5 * 85100068864
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.25")
    assert ahead_of_time.memory_limit("a100:8") == 0.25 * 85100068864
    assert ahead_of_time.memory_limit("cpu:8") is None
    # Cards are sold by their memory in round numbers; a program sees a little less, or up to as many GiB.
    sold = {"l4": 24, "rtx4090": 24, "a100-40": 40, "h100": 80, "h200": 141}
    for name, size in sold.items():
        assert 0.95 * size * 1e9 < CARDS[name].memory <= size * 2**30, name


@pytest.mark.parametrize("fraction", ["much", "0", "-0.5", "1.01", "nan", "inf", "75%"])
@pytest.mark.parametrize("size", [["--global_batch", "8"], ["--largest"]])
def test_a_fraction_of_a_card_that_is_none_is_refused_in_one_line(fraction, size, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction})
    assert main(["compile", "--config", str(ROOT / "configs/afloc.py"), "--topology", "h100:1", *size]) == 1
    out, error = capsys.readouterr()
    assert (out, error) == (
        "",
        f"afloc: XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}: must be a number above 0 and up to 1, "
        "the part of a card for programs\n",
    )


@pytest.mark.slow
def test_a_split_state_takes_less_of_each_device():
    """Two kernels of 16 x 4,096 with their moments, 1.5 MiB, are most of this model."""
    command = (
        "--topology",
        "cpu:4",
        "--global_batch",
        "16",
        "--json",
        "--set",
        "model.text.bert.intermediate_size=4096",
    )
    whole, split = (
        json.loads(compiled(*command, "--set", f"training.fsdp={fsdp}").stdout)["argument_bytes_per_chip"]
        for fsdp in (1, 4)
    )
    assert whole - split > 0.7 * 6 * 4 * 16 * 4096


def test_a_state_that_does_not_divide_is_refused():
    done = compiled("--topology", "cpu:4", "--global_batch", "12", "--set", "training.fsdp=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "afloc: config.training.fsdp = 3: must be a divisor of the number of devices, 4\n"


def test_the_plain_report_names_the_largest_buffers(capsys, monkeypatch):
    """The largest batch of a pod, where 4,096 pairs are the fewest tried that do not fit."""
    buffer = Buffer("f32", [64, 1444, 512], 181 * 2**20, 2, ["shard_map/dot", "x"])
    report = reported(
        2048,
        fits=True,
        limit_bytes_per_chip=2**34,
        **dict.fromkeys(("peak_bytes_per_chip", "argument_bytes_per_chip", "temporary_bytes_per_chip"), 2**30),
        collectives={"all-reduce": 5},
        largest_buffers=[buffer] * 9,
        low_rank=LowRank(False, "the word level has no weight"),
        tiles={"word": ahead_of_time.Tile(4, 512, 36, 5), "sentence": ahead_of_time.Tile(16, 512, 6, 1)},
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    found = ahead_of_time.LargestBatch(report, too_large=4096)
    monkeypatch.setattr(ahead_of_time, "largest_batch", lambda config, topology, part: found)
    assert main(["compile", "--config", str(ROOT / "configs/afloc.py"), "--topology", "v5e:4x4", "--largest"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "v5e:4x4, 16 chips, global batch 2048: fits, 1.00 GiB of 16.00 GiB a chip",
        "arguments 1.00 GiB, temporary 1.00 GiB",
        "loss.low_rank is off: the word level has no weight",
        "words: tiles of 4 images x 512 units",
        "sentences: tiles of 16 images x 512 units",
        "collectives: all-reduce 5",
        "largest buffers:",
        *["     181.00 MiB  f32[64,1444,512], 2 places, from shard_map/dot"] * 5,
        "the next larger batch tried, 4096, does not fit",
    ]


def test_a_batch_that_does_not_divide_is_refused():
    done = compiled("--topology", "cpu:4", "--global_batch", "10")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "afloc: a global batch of 10 does not divide over 4 chips\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "cpu:none"], "write cpu:N"),
        (["--topology", "v5e:16"], "write v5e:16x16"),
        (["--topology", "h900:8"], "write v5e:16x16"),
        (["--topology", "h100:8x"], "h100:4x8 (hosts x cards)"),
        (["--topology", "a100:0"], "write v5e:16x16"),
        (["--topology", "a100:1000000"], "write v5e:16x16"),
        (["--topology", "v5e:0x4"], "write v5e:16x16"),
        (["--topology", "v5e:4x4x4"], "chips of v5e lie on a grid of two sides, at most 16x16"),
        (["--topology", "v6e:4x32"], "chips of v6e lie on a grid of two sides, at most 16x16"),
        (["--topology", "cpu:8", "--set", "loss.sharpness=3"], "config.loss.sharpness: unknown key"),
        (["--topology", "cpu:8", "--global_batch", "1"], "training.batch_size = 1"),
        (["--topology", "cpu:2", "--largest"], "--topology cpu:2: has no limit"),
        (["--topology", "cpu:2", "--largest", "--set", "loss.contrast_group=96"], "--topology cpu:2: has no limit"),
    ],
)
def test_a_wrong_call_exits_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(["compile", "--config", str(ROOT / "configs/afloc.py"), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm. Exceeded hbm capacity by 4.50G.",
        "Ran out of memory on HBM, the total memory required (20.25G) exceeds available HBM (15.75G).",
    ],
)
def test_a_refusal_for_want_of_memory_says_how_much_is_missing(words, monkeypatch):
    """The words are those of the TPU compiler of libtpu 0.0.42."""

    class Lowered:
        def compile(self):
            raise RuntimeError(f"RESOURCE_EXHAUSTED: {words}")

    monkeypatch.setattr(ahead_of_time, "topology_devices", lambda topology: [None] * 16)
    for name, stand_in in (
        ("build_mesh", None),
        ("assemble", SimpleNamespace(low_rank=None)),
        ("tiles_of_levels", {}),
        ("_lower", Lowered()),
    ):
        monkeypatch.setattr(ahead_of_time, name, lambda *_, stand_in=stand_in, **__: stand_in)
    report = ahead_of_time.compile_step(RunConfig(), "v5e:4x4").to_json()
    assert report["fits"] is False
    assert report["peak_bytes_per_chip"] == int(20.25 * 2**30)
    assert report["limit_bytes_per_chip"] == int(15.75 * 2**30)
    assert report["largest_buffers"] == []


@pytest.mark.parametrize(
    ("settings", "fits", "found", "too_large"),
    [
        ({}, 37 * 16, 37 * 16, 38 * 16),
        ({}, 16, 16, 32),
        ({}, 15, 16, 16),
        ({}, 2**30, 2**20, None),
        ({"loss.contrast_group": 64, "model.image.statistics_group": 64}, 1000, 512, 1024),
        ({"loss.contrast_group": 64, "model.image.statistics_group": 64}, 3500, 3072, 4096),
        ({"loss.contrast_group": 4}, 63, 32, 64),  # shares of 3 pairs would hold parts of two groups
        ({"loss.contrast_group": 4, "loss.implementation": "tiled"}, 63, 48, 64),
        ({"training.micro_batch": 48}, 500, 480, 528),
    ],
)
def test_the_largest_batch_is_found_by_doubling_and_bisection(settings, fits, found, too_large, monkeypatch):
    """Pretending that batches of up to `fits` pairs fit 16 chips; only batches that a run takes are tried."""
    asked = []
    config = get_config()
    config.update_from_flattened_dict(settings)

    def pretend(config, topology, part):
        assert part == "loss"
        batch = config.training.batch_size
        asked.append(batch)
        return reported(batch, fits=batch <= fits)

    monkeypatch.setattr(ahead_of_time, "topology_devices", lambda topology: [None] * 16)
    monkeypatch.setattr(ahead_of_time, "compile_step", pretend)
    largest = ahead_of_time.largest_batch(RunConfig.from_config(config), "v5e:4x4", part="loss")
    assert (largest.report.global_batch, largest.too_large) == (found, too_large)
    assert len(asked) == len(set(asked)) <= 18


def test_the_search_ends_within_a_32nd_of_what_fits(monkeypatch):
    def pretend(config, topology, part):
        return reported(config.training.batch_size, fits=config.training.batch_size <= 12345)

    monkeypatch.setattr(ahead_of_time, "topology_devices", lambda topology: [None])
    monkeypatch.setattr(ahead_of_time, "compile_step", pretend)
    largest = ahead_of_time.largest_batch(RunConfig(), "v5e:1x1")
    assert 12345 * 31 / 32 <= largest.report.global_batch <= 12345 < largest.too_large


def test_a_compiler_that_dies_is_a_line(tmp_path, monkeypatch):
    """In the place of libtpu, a module that ends the process as libtpu's faults do."""
    (tmp_path / "libtpu.py").write_text("import os, sys\nprint('stack of C++', file=sys.stderr)\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = compiled("--topology", "v5e:4x4", "--part", "loss")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("afloc: the compiler died of SIGABRT; --debug shows what it wrote, try another setting\n")
    debugged = compiled("--topology", "v5e:4x4", "--part", "loss", "--debug")
    assert debugged.returncode == 1 and "stack of C++" in debugged.stderr and "died of SIGABRT" in debugged.stderr
    wrong = compiled("--topology", "v5e:4x4x4x4")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_settings_that_no_batch_meets_are_said():
    config = get_config()
    config.loss.contrast_group = 2**19 + 1
    with pytest.raises(UsageError, match="no global batch of up to 1048576 pairs divides over 16 chips"):
        ahead_of_time.allowed_batches(RunConfig.from_config(config), 16)
