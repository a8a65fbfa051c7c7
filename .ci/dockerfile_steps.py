"""Runs the steps of a Dockerfile in a clean virtual environment, for machines without a Docker engine.

    python .ci/dockerfile_steps.py deploy/docker/gpu.Dockerfile

FROM must be a python image, of whose version an interpreter is on PATH. Its system packages are those of this machine.
WORKDIR is a temporary folder; COPY takes files from the repository; RUN and CMD run with the environment of a login.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = re.compile(r"PIP_|[A-Z]+_PROXY$|SSL_CERT|REQUESTS_CA", re.IGNORECASE)  # how this machine reaches a package index


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions with their arguments, without comments and with continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def interpreter(image: str) -> str:
    """The Python on PATH (or this one) of the version of an image such as python:3.12-slim."""
    version = re.match(r"python:(\d+\.\d+)", image)
    if version is None:
        raise SystemExit(f"FROM {image}: only python images can be stood in for")
    own = f"{sys.version_info.major}.{sys.version_info.minor}" == version[1]
    found = sys.executable if own else shutil.which(f"python{version[1]}")
    if found is None:
        raise SystemExit(f"FROM {image}: no python{version[1]} on PATH")
    return found


def run_steps(dockerfile: Path, scratch: Path) -> None:
    """Runs the steps below the folder `scratch`. Raises CalledProcessError where one fails."""
    folder = scratch
    environment = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    environment |= {
        "HOME": str(scratch),
        "LANG": "C.UTF-8",
        "PATH": f"{scratch / 'venv/bin'}:/usr/local/bin:/usr/bin:/bin",
    }
    for name, rest in instructions(dockerfile):
        print(f"{dockerfile.name}: {name} {rest}", flush=True)
        if name == "FROM":
            subprocess.run([interpreter(rest), "-m", "venv", scratch / "venv"], check=True)
        elif name == "WORKDIR":
            folder = scratch / rest.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = shlex.split(rest)
            for source in (path for pattern in sources for path in sorted(ROOT.glob(pattern)) or [ROOT / pattern]):
                place = folder / target
                if source.is_dir():
                    shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
                else:
                    shutil.copy(source, place)
        elif name == "ENV":
            environment |= dict(item.split("=", 1) for item in shlex.split(rest))
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", rest], cwd=folder, env=environment, check=True)
        elif name == "CMD":
            subprocess.run(json.loads(rest), cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        else:
            raise SystemExit(f"{dockerfile}: {name} cannot be run without Docker")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="dockerfile_") as made:
            run_steps(Path(given), Path(made))
