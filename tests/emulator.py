"""A local stand-in for Google Cloud Storage: gcp-storage-emulator, with what it lacks for these tests."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

READ_ONLY, FORBIDDEN = "read-only", "forbidden"  # buckets that refuse to be written, and everything
UNCONDITIONAL = "unconditional"  # a bucket of a store that pays no heed to conditions, as the emulator by itself

_download, _insert, _delete = objects.download, objects.insert, objects.delete


def _with_generation(request, response, storage, *args, **kwargs):
    """A download with the generation of the object, from which TensorStore makes the condition of its next write."""
    _download(request, response, storage, *args, **kwargs)
    if response.status.value < 300:
        about = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = about["generation"]


def _on_condition(handler):
    """The handler of a write, with the answer 412 where the object does not have the generation that is asked for.

    Requests are handled one after the other, so that no other one comes between the comparison and the write.
    """

    def handle(request, response, storage, *args, **kwargs):
        bucket, wanted = request.params["bucket_name"], request.query.get("ifGenerationMatch")
        if wanted and bucket != UNCONDITIONAL:
            name = (
                request.params.get("object_id") or request.query.get("name", [None])[0] or request.data["meta"]["name"]
            )
            try:
                generation = storage.get_file_obj(bucket, name)["generation"]
            except NotFound:
                generation = "0"
            if generation != wanted[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        handler(request, response, storage, *args, **kwargs)

    return handle


class _Handler(server.RequestHandler):
    def handle(self):
        with suppress(ConnectionError):  # a client may close a download early
            super().handle()

    def _refused(self) -> bool:
        """Answers 403 for a bucket that may not be used in this way."""
        named = {READ_ONLY: self.command != "GET", FORBIDDEN: True}
        if not any(refuses and f"/b/{bucket}" in self.path for bucket, refuses in named.items()):
            return False
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        error = {"code": 403, "message": "reader@example.com does not have storage.objects access to the bucket."}
        body = json.dumps({"error": error}).encode()
        self.send_response(HTTPStatus.FORBIDDEN)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True

    def do_GET(self):
        self._refused() or super().do_GET()

    def do_POST(self):
        self._refused() or super().do_POST()

    def do_PUT(self):
        self._refused() or super().do_PUT()

    def do_DELETE(self):
        self._refused() or super().do_DELETE()


@contextmanager
def serving(port: int = 0) -> Iterator[dict[str, str]]:
    """The environment in which gcsfs and TensorStore use an emulator. Its buckets: `bucket` and the above."""
    objects.download = _with_generation
    changed = {_download: _with_generation, _insert: _on_condition(_insert), _delete: _on_condition(_delete)}
    for _, methods in server.HANDLERS:
        for method, handler in methods.items():
            methods[method] = changed.get(handler, handler)
    server.RequestHandler = _Handler
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    emulator = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    for name in (READ_ONLY, FORBIDDEN, UNCONDITIONAL):
        buckets.create_bucket(name, emulator._storage)
    emulator.start()
    try:
        url = f"http://127.0.0.1:{emulator._api._httpd.server_port}"
        variables = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
        yield {**dict.fromkeys(variables, url), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}
    finally:
        emulator.stop()


if __name__ == "__main__":
    import sys
    import time

    with serving(int(sys.argv[1])) as environment:
        print(" ".join(f"{name}={value}" for name, value in environment.items()), flush=True)
        while True:
            time.sleep(1)
