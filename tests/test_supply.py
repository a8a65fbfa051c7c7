"""The versions that CI installs are locked, and what CI may do is bounded."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
APART = {"requirements-beam.txt"}  # an environment of its own
LISTS = sorted(path for path in ROOT.glob("requirements*.txt") if path.name not in APART)


def lines(path):
    """The lines of a list of requirements without comments and references to other lists."""
    kept = (re.sub(r"(^|\s)#.*", "", line).strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in kept if line and not line.startswith("-r")]


LOCK = {canonicalize_name(line.name): line for line in lines(ROOT / "constraints-3.11.txt")}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_the_lock_names_every_requirement_with_a_version_in_its_range(path):
    for requirement in lines(path):
        (version,) = LOCK[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(version.version), requirement


def test_the_lock_has_one_exact_public_version_of_each_package():
    assert len(LOCK) == len(lines(ROOT / "constraints-3.11.txt"))
    for line in LOCK.values():
        (version,) = line.specifier
        assert (version.operator, line.url, line.marker) == ("==", None, None), line
        assert "+" not in version.version and "*" not in version.version, "another index has no such build"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is for Python 3.11")
def test_the_lock_names_what_its_packages_bring_and_fits_it():
    installed = {canonicalize_name(package.metadata["Name"]): package for package in metadata.distributions()}
    for name, locked in LOCK.items():
        if name not in installed or f"=={installed[name].version.partition('+')[0]}" != str(locked.specifier):
            continue  # an environment may lack lists, or have newer versions
        for text in installed[name].requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                (version,) = LOCK[canonicalize_name(needed.name)].specifier
                assert needed.specifier.contains(version.version), (name, text)


def test_ci_installs_the_lock():
    script = (ROOT / ".ci/run").read_text()
    assert "lock=(-c constraints-3.11.txt)" in script and 'requirements-dev.txt "${lock[@]}"' in script


def test_workflows_may_read_the_repository_and_nothing_else():
    workflows = sorted((ROOT / ".github/workflows").iterdir())
    assert workflows
    for path in workflows:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            # The job that publishes the site may write pages, and nothing else.
            publishes = job.get("environment", {}).get("name") == "github-pages"
            assert job.get("permissions", {}) == ({"pages": "write", "id-token": "write"} if publishes else {})
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False, "the token would stay in the checkout"
        assert "secrets." not in path.read_text() and "pull_request_target" not in path.read_text()
