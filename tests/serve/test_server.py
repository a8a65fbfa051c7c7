"""The processes of `afloc serve`: what starts, what is stopped, and what is left behind."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from afloc_jax import extras
from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.serve import app as application
from afloc_jax.serve.server import is_loopback, listen
from tests.inference.conftest import folder  # noqa: F401 (a fixture)
from tests.serve.asking import write_image

ROOT = str(Path(application.__file__).parents[2])
IMPORTS = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])}


@contextlib.contextmanager
def serving(folders, work, *flags):
    """The process of `afloc serve`, and what it prints."""
    for name in ("work", "temporary"):
        (work / name).mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "afloc_jax", "serve", *map(str, folders), "--port", "0", *flags],
        cwd=work / "work",
        env={**IMPORTS, "TMPDIR": str(work / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=20)


def get(address, timeout=5):
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        return answer.read()


def post(address, data, timeout=60):
    try:
        with urllib.request.urlopen(address, data, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.code, json.load(answer)


def test_the_page_answers_and_ends_while_an_answer_hangs_and_leaves_nothing_behind(folder, tmp_path):  # noqa: F811
    image = write_image("dicom", tmp_path / "a").read_bytes()
    flags = ("--host", "0.0.0.0", "--time_limit", "6", "--sharpen", "--prune")
    with serving([folder, folder], tmp_path, *flags) as (server, said):
        port, token = re.search(r":(\d+)/\?token=(\S{20,}) ", said).groups()
        address = f"http://127.0.0.1:{port}"
        (worker,) = psutil.Process(server.pid).children()
        page = get(f"{address}/?token={token}")
        assert b"For research, not for diagnosis" in page
        assert page.count(b'"sharpen": true, "prune": true, "windows": 1') == 2
        assert post(f"{address}/picture", image)[0] == 401
        status, content = post(f"{address}/localize?prompt=small+secret&token={token}", image)
        assert status == 200 and content["prompts"][0]["prompt"] == "secret"
        second = post(f"{address}/localize?prompt=small+secret&model=2&token={token}", image)
        assert second == (200, content), "two models are in one process"
        assert post(f"{address}/localize?prompt=secret&model=3&token={token}", image)[0] == 400
        worker.suspend()  # an answer that never comes
        status, content = post(f"{address}/picture?token={token}", image)
        assert status == 503 and "no answer within 6 s" in content["error"]
        assert not worker.is_running()
        assert post(f"{address}/picture?token={token}", image)[0] == 200, "another process answers"
        (worker,) = psutil.Process(server.pid).children()
        worker.suspend()
        with pytest.raises((TimeoutError, urllib.error.URLError)):
            post(f"{address}/picture?token={token}", image, timeout=0.3)
        get(f"{address}/?token={token}")
        began = time.monotonic()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        assert time.monotonic() - began < 2  # half of it for what else this machine does
        assert not worker.is_running()
        assert server.communicate(timeout=20) == ("", "afloc: no encryption: images pass the network as they are\n")
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "temporary").iterdir())


OWNER = """
import sys, time
from afloc_jax.serve.limits import LIMITS
from afloc_jax.serve.workers import Worker
worker = Worker([(sys.argv[1], "a")], LIMITS)
worker._spawn()
print(worker._process.pid, flush=True)
time.sleep(60)
"""


def test_the_process_that_answers_ends_with_the_page(tmp_path):
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=IMPORTS, text=True) as owner:
        worker = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    worker.wait(timeout=20)


def test_a_token_that_an_address_cannot_carry_is_refused(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--token", "a b&c"]) == 2
    assert "--token takes letters, digits" in capsys.readouterr().err


def test_a_port_in_use_is_named_before_the_model_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path / "no model"), "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 is in use" in said and "--port" in said
    assert said.count("\n") == 1


def test_a_folder_without_a_model_and_a_host_without_an_address_are_named(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"203.0.113.7 is not an address of this machine"):  # one kept for documentation
        listen("203.0.113.7", 0)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(tmp_path), "--port", "70000"])


def test_missing_packages_are_named_with_the_way_to_install_them(monkeypatch, capsys):
    monkeypatch.setattr(extras, "version", lambda name: None if name == "uvicorn" else "1")
    assert main(["serve", "model"]) == 2
    assert 'serve needs uvicorn; run: pip install "afloc-jax[serve]"' in capsys.readouterr().err


def test_only_addresses_of_this_machine_are_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4")))
