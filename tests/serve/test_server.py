"""The processes of `afloc serve`: what starts, what is stopped, and what is left behind."""

import contextlib
import importlib.util
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

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.serve import app as application
from afloc_jax.serve.server import is_loopback, listen
from tests.inference.conftest import folder  # noqa: F401 (a fixture)
from tests.serve.test_app import write_image


@contextlib.contextmanager
def serving(folder, work, *flags):  # noqa: F811
    """The process of `afloc serve`, and the address that it prints."""
    for name in ("work", "temporary"):
        (work / name).mkdir()
    root = str(Path(application.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "afloc_jax", "serve", str(folder), "--port", "0", *flags],
        cwd=work / "work",
        env={**os.environ, "TMPDIR": str(work / "temporary"), "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, re.search(r"http://[^ ]*", process.stdout.readline()).group()
    finally:
        process.kill()
        process.communicate(timeout=20)


def get(address, timeout=1.0):
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
    with serving(folder, tmp_path, "--time_limit", "4") as (server, address):
        (worker,) = psutil.Process(server.pid).children()
        assert b"For research, not for diagnosis" in get(address)
        status, content = post(f"{address}localize?prompt=secret", image)
        assert status == 200 and content["prompts"][0]["prompt"] == "secret"
        worker.suspend()  # an answer that never comes
        status, content = post(f"{address}picture", image)
        assert status == 503 and "no answer within 4 s" in content["error"]
        assert not worker.is_running()
        get(address)
        assert post(f"{address}picture", image)[0] == 200, "another process answers"
        (worker,) = psutil.Process(server.pid).children()
        worker.suspend()
        asked = urllib.request.Request(f"{address}picture", image)
        with pytest.raises((TimeoutError, urllib.error.URLError)):
            urllib.request.urlopen(asked, timeout=0.3)
        get(address)
        began = time.monotonic()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        assert time.monotonic() - began < 1
        out, said = server.communicate(timeout=20)
        assert out + said == ""
        assert not worker.is_running()
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "temporary").iterdir())


def test_the_process_that_answers_ends_with_the_page(folder, tmp_path):  # noqa: F811
    with serving(folder, tmp_path, "--host", "0.0.0.0", "--token", "x.y") as (server, address):
        assert address.endswith("/?token=x.y")
        port = re.search(r":(\d+)/", address).group(1)
        assert b"Where is this phrase" in get(f"http://127.0.0.1:{port}/?token=x.y")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"http://127.0.0.1:{port}/")
        (worker,) = psutil.Process(server.pid).children()
        server.kill()
        worker.wait(timeout=5)


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
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "model"]) == 2
    assert "serve needs uvicorn; run: pip install -r requirements-serve.txt" in capsys.readouterr().err


def test_only_addresses_of_this_machine_are_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4")))
