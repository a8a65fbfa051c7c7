"""Model folders on the Hugging Face hub, with a stand-in for the hub on this machine."""

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

import afloc_jax
from afloc_jax.errors import UsageError, UserError
from afloc_jax.weights.hub import model_folder_of
from tests.inference.conftest import folder  # noqa: F401 (a fixture)

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What the library asks of the hub, for one repository in memory; files are sent with the commit."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self):
        self.asked.append(self.path)
        place = f"http://{self.headers['Host']}/owner/model"
        if self.path == "/api/repos/create":
            self.answer({"url": place, "name": "owner/model"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(self.body())["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": told})
        elif "/commit/" in self.path:
            for line in self.body().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"success": True, "commitOid": SHA, "commitUrl": f"{place}/commit/{SHA}", "hookOutput": ""})
        else:
            self.answer({"error": "not here"}, 404)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        about = {"_id": "1", "id": "owner/model", "sha": SHA, "private": True, "tags": [], "downloads": 0, "likes": 0}
        if path.startswith("/api/models/owner/model/tree/"):
            listed = self.files.items()
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": "1"} for name, data in listed])
        elif path.startswith("/api/models/owner/model"):
            self.answer({**about, "siblings": [{"rfilename": name} for name in self.files]})
        elif path.startswith("/owner/model/resolve/") and path.split("/", 5)[5] in self.files:
            data = self.files[path.split("/", 5)[5]]
            self.answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=SHA)
        else:
            self.answer({"error": "not here"}, 404)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[type[Hub]]:
    """The stand-in, which the library takes for the hub, with an empty cache."""
    import huggingface_hub.constants as constants

    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.chdir(tmp_path)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_the_hub_and_comes_back_by_its_name(hub, folder, tmp_path):  # noqa: F811
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/patients.json").write_text("mine")
    assert afloc_jax.push_to_hub(tmp_path / "model", "owner/model").endswith(f"/owner/model/commit/{SHA}")
    assert set(hub.files) == {path.name for path in folder.iterdir()}
    assert hub.files["README.md"].startswith(b"---\n")
    fetched, ours = afloc_jax.from_pretrained("owner/model"), afloc_jax.load(folder)
    film = np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8)
    found, expected = (model.localize([film], ["edema"])[0][0].square for model in (fetched, ours))
    np.testing.assert_array_equal(found, expected)


def test_folders_come_before_names_and_what_is_nowhere_is_one_line(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    assert model_folder_of("runs/demo") == "runs/demo" and model_folder_of("model") == "model"
    assert hub.asked == []
    with pytest.raises(UserError, match=r"^other/model: no such model folder here, .*owner/model where there is a net"):
        afloc_jax.load("other/model")


def test_only_a_model_folder_is_sent_to_a_name_of_a_model(folder, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match=r"no model folder, for it has no config\.json"):
        afloc_jax.push_to_hub(tmp_path, "owner/model")
    with pytest.raises(UsageError, match="'model' is no name of a model on the hub; write owner/model"):
        afloc_jax.push_to_hub(folder, "model")
