"""What is here and what is missing: versions, processor, GPU, disk, data, weights; each gap with what mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from . import environment

OK, MISSING, OPTIONAL = "ok", "missing", "not found"
NEEDED = ("torch", "torchvision", "timm", "accelerate", "safetensors", "pandas", "seaborn", "scikit-learn",
          "scikit-image", "papermill", "jupyter-book")  # fmt: skip
BOOK_WEIGHTS = ("mobilenet_micro", "efficientnet_lite0")
FREE_GB = 2.0
INSTALL = "pip install -c requirements.lock -e '.[book,test]'"
PYTHONS = ((3, 11), (3, 14))


@dataclass(frozen=True)
class Check:
    """One line of the report: `missing` keeps the book from being built, `not found` does not."""

    name: str
    status: str
    detail: str
    mend: str = ""


def checks() -> list[Check]:
    """All checks, in the order of the report. Nothing is changed, downloaded or generated."""
    return [*_software(), *_machine(), *_data(), *_weights()]


def _software() -> list[Check]:
    first, last = PYTHONS
    version = sys.version_info[:3]
    good = first <= version[:2] < last
    supported = f"Python {first[0]}.{first[1]} to {last[0]}.{last[1] - 1}"
    found = [Check("python", OK if good else MISSING, ".".join(map(str, version)), "" if good else f"use {supported}")]
    for name in NEEDED:
        installed = _installed(name)
        good = Check(name, OK, installed) if installed else Check(name, MISSING, "not installed", INSTALL)
        found.append(good)
    return [*found, _lock()]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lock(path: Path | None = None) -> Check:
    """Whether what is installed is what the lock pins; another version is no hindrance, just worth knowing."""
    path = path or environment.home() / "requirements.lock"
    if not path.is_file():
        return Check("pinned versions", OPTIONAL, f"no {path.name} here", "run this in the checkout")
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = dict(match.groups() for line in lines if (match := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)))
    differ = []
    for name, pin in pins.items():
        installed = _installed(name)
        if installed is not None and installed.partition("+")[0] != pin.partition("+")[0]:
            differ.append(f"{name} {installed} (pinned {pin})")
    if differ:
        return Check("pinned versions", OPTIONAL, "other versions than the lock's: " + ", ".join(differ), INSTALL)
    return Check("pinned versions", OK, f"what is installed matches the {len(pins)} pins")


def _machine() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = [
        Check("processor", OK, f"{environment.processor()}, {environment.cores()} cores"),
        Check("memory", OK, f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
    ]
    for gpu in environment.gpus():
        usable = f"{gpu['name']}, {gpu['memory_mb'] / 1024:.0f} GiB, bf16 {'yes' if gpu['bf16'] else 'no'}"
        found.append(Check("GPU", OK, f"{usable}, driver {gpu['driver']}"))
    if not environment.gpus():
        found.append(Check("GPU", OPTIONAL, "none; only full runs need it", "use a machine with an NVIDIA GPU"))
    for name, folder in (("cache", _cache()), ("runs", environment.home() / "runs")):
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        enough = free >= FREE_GB
        mend = "" if enough else f"free at least {FREE_GB:.0f} GB" + (", or set VITQ_CACHE" if name == "cache" else "")
        found.append(Check(f"disk for {name}", OK if enough else MISSING, f"{free:.1f} GB free at {folder}", mend))
    return found


def _cache() -> Path:
    return Path(os.environ.get("VITQ_CACHE") or "~/.cache/vitq").expanduser()


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _data() -> list[Check]:
    made = sorted(_cache().glob("glyphs-*.npy"))
    found = [
        _part_of("digits", "sklearn", "scikit-learn"),
        Check("glyphs", OK, f"{len(made)} sets in the cache" if made else "made at first use"),
        _part_of("photos", "skimage", "scikit-image"),
    ]
    for name, variable in (("imagenet", "VITQ_IMAGENET"), ("coco", "VITQ_COCO")):
        folder = os.environ.get(variable)
        if folder and Path(folder).is_dir():
            found.append(Check(name, OK, folder))
        else:
            state = f"{variable} names {folder}, which is no folder" if folder else "none; only full runs need it"
            found.append(Check(name, OPTIONAL, state, f"export {variable}=/path/to/{name}"))
    return found


def _part_of(data: str, module: str, package: str) -> Check:
    here = importlib.util.find_spec(module) is not None
    return Check(data, OK if here else MISSING, f"part of {package}", "" if here else INSTALL)


def _weights() -> list[Check]:
    """What `vitq.zoo.names` says of each full-precision model."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("timm") is None:
        return []
    from . import zoo

    found = []
    for row in zoo.names().reset_index().to_dict("records"):
        name, here = f"weights of {row['name']}", row["found"] == "found"
        if row["name"].startswith("timm:"):
            found.append(Check(name, OK, row["found"]))
        elif here:
            found.append(Check(name, OK, f"{row['source']}, {row['size']}"))
        else:
            status = MISSING if row["name"] in BOOK_WEIGHTS else OPTIONAL
            mend = "git checkout vitq/weights" if row["source"] == "shipped" else INSTALL
            found.append(Check(name, status, row["found"], mend))
    return found


def report(as_json: bool = False) -> int:
    """Print the checks and return the exit status: 0 when the book can be built, 3 when something needed is missing."""
    found = checks()
    missing = [check for check in found if check.status == MISSING]
    if as_json:
        import json

        print(json.dumps({"ready": not missing, "checks": [asdict(check) for check in found]}, indent=1))
        return 3 if missing else 0
    width = max(len(check.name) for check in found)
    for check in found:
        mend = f"  ->  {check.mend}" if check.mend else ""
        print(f"{check.name:<{width}}  {check.status:<9}  {check.detail}{mend}")
    names = ", ".join(check.name for check in missing)
    print(f"missing: {names}" if missing else "everything that the book needs is here")
    return 3 if missing else 0
