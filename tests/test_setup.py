"""The files that set the project up agree with each other, and a failing step fails `make`."""

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK_LINES}
CUDA = ("nvidia-", "cuda-", "triton")


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in PROJECT["dependencies"] + extras["book"] + extras["test"]]


def test_lock_is_exact_and_names_no_place():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in LOCK_LINES)
    assert len(LOCK) == len(LOCK_LINES) and not any(name.startswith(CUDA) for name in LOCK)
    assert "make lock" in (ROOT / "requirements.lock").read_text().splitlines()[2]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_lock_satisfies_what_the_project_asks_for(requirement):
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_locked_packages_accept_every_python_of_the_project(python):
    needs = {d.name: d.metadata["Requires-Python"] for d in importlib.metadata.distributions()
             if LOCK.get(canonicalize_name(d.name)) == d.version and d.metadata["Requires-Python"]}
    assert len(needs) > 50
    assert not {name: text for name, text in needs.items() if not SpecifierSet(text).contains(python)}


def test_lock_is_complete():
    todo, seen = [(r.name, r.extras) for r in requirements()], set()
    while todo:
        name, extras = todo.pop()
        name = canonicalize_name(name)
        if name in seen or name.startswith(CUDA):
            continue
        seen.add(name)
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((needed.name, needed.extras))
    assert len(seen) > 50
    assert not sorted(seen - set(LOCK))


def test_conda_environment_takes_the_same_versions():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(item for item in content["dependencies"] if str(item).startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python=") + ".0")
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c requirements.lock", "-e .[book,test]"]


def test_supported_pythons_agree():
    named = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0") for version in named)
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("goal", "status"), [("lint", 7), ("test", 7), ("bench", 1), ("book", 2), ("lint", 0)])
def test_make_hands_on_a_failure(tmp_path, goal, status):
    (tmp_path / "python").write_text(f"#!/bin/sh\nexit {status}\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "stamp").touch()
    result = make(goal, f"BIN={tmp_path}", f"STAMP={tmp_path / 'stamp'}")
    assert result.returncode == (2 if status else 0), result.stderr


def test_make_says_which_python_it_needs(tmp_path):
    result = make("setup", "PYTHON=", f"STAMP={tmp_path / 'stamp'}")
    assert result.returncode != 0 and "Python 3.11, 3.12 or 3.13" in result.stderr and "Traceback" not in result.stderr


def test_ci_runs_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -eu" in script and "make test" in script and os.access(ROOT / ".ci" / "run", os.X_OK)
