"""The figure of README.md is one of the book's: taken from the committed output of a notebook, never drawn apart."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat
from contents import ROOT

NOTEBOOK, NAME = "notebooks/nagel2022/small.ipynb", "fig-small-remedies"
TARGET = ROOT / "book" / "_static" / "readme.png"


def figure() -> bytes:
    """The PNG of the figure called NAME."""
    for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == NAME:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise RuntimeError(f"{NOTEBOOK} has no output of the figure {NAME}; run it")


def write_figure(target: Path = TARGET) -> bool:
    """Write the figure if it has changed; tell whether it had."""
    new = figure()
    if target.is_file() and target.read_bytes() == new:
        return False
    target.write_bytes(new)
    return True
