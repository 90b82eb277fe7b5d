"""What the table of contents names, and what the pages refer to."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TABLE = re.compile(r"^`{3,}\{vitq-(?:table|verdicts)\}\s+(\S+)", re.MULTILINE)


def _names(node: object) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _names(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [name for value in node.values() if isinstance(value, list) for name in _names(value)]


def pages(root: Path = ROOT) -> list[Path]:
    """The source files that `_toc.yml` names, in its order.

    Raises:
        FileNotFoundError: a name without a file, or with two.
    """
    found = []
    for name in _names(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))):
        sources = [path for suffix in (".md", ".ipynb") if (path := root / f"{name}{suffix}").is_file()]
        if len(sources) != 1:
            raise FileNotFoundError(f"_toc.yml names {name}, for which there are {len(sources)} files")
        found += sources
    return found


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of the table of contents."""
    return [path for path in pages(root) if path.suffix == ".ipynb"]


def table_file(name: str, root: Path = ROOT) -> Path:
    """The CSV file that a table directive means by a name."""
    name = name.removesuffix(".csv")
    return root / "book" / "results" / ("" if name.startswith("published/") else "tables") / f"{name}.csv"


def tables(markdown: str) -> list[str]:
    """Names of the tables that a page shows."""
    return TABLE.findall(markdown)
