"""The memory table (benchmarks/scale_table.py) where a compiler gives no row; the compilers themselves do not run."""

import json
import signal
import subprocess

from benchmarks import scale_table

SIZES = ("peak_bytes_per_chip", "limit_bytes_per_chip", "argument_bytes_per_chip", "temporary_bytes_per_chip")


def test_a_compiler_that_dies_is_a_line_and_the_table_goes_on(tmp_path, monkeypatch, capsys):
    def pretend(command, **_):
        topology = command[command.index("--topology") + 1]
        if topology == "v6e:4x4":
            return subprocess.CompletedProcess(command, -signal.SIGSEGV, "", "*** SIGSEGV ***\na stack\n")
        if topology == "v4:4x4x4":
            return subprocess.CompletedProcess(command, 1, "", "afloc: the compiler refused: an op\n")
        row = {"part": "step", "topology": topology, "chips": 16, "global_batch": 64, "fits": True}
        return subprocess.CompletedProcess(command, 0, json.dumps(row | dict.fromkeys(SIZES, 2**30)), "")

    monkeypatch.setattr(scale_table.subprocess, "run", pretend)
    rows = ["v6e:4x4=64", "v4:4x4x4=64", "v5e:4x4=64"]
    assert scale_table.main(["--out", str(tmp_path / "rows.jsonl"), *rows]) == 1
    out, error = capsys.readouterr()
    assert error.splitlines()[:2] == [
        "v6e:4x4=64: no row, the compiler died of signal 11",
        "v4:4x4x4=64: no row, afloc: the compiler refused: an op",
    ]
    assert "| step | v5e:4x4 | 16 | 64 | as it is | 1.00 |" in out
    assert [json.loads(line)["topology"] for line in (tmp_path / "rows.jsonl").open()] == ["v5e:4x4"]
    assert scale_table.main(["--out", str(tmp_path / "rows.jsonl"), "v5e:4x4=64"]) == 0
