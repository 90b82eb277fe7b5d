"""Build the book: run the notebooks whose outputs are stale, build with warnings as errors, check what came out."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable

from check_html import problems
from contents import ROOT, notebooks, pages

HTML = ROOT / "_build" / "html"
LOG = ROOT / "_build" / "build.log"


def run_notebooks(rerun: bool) -> str:
    """Run the stale notebooks, or all of them, in place."""
    from vitq.launch import run_notebook
    from vitq.provenance import is_stale

    reasons = {path: is_stale(path) for path in notebooks()}
    todo = {path: "asked for" if rerun else reason for path, (stale, reason) in reasons.items() if stale or rerun}
    for i, (path, reason) in enumerate(todo.items(), 1):
        print(f"  [{i}/{len(todo)}] {path.relative_to(ROOT)} ({reason})", end=" ", flush=True)
        start = time.monotonic()
        run_notebook(path)
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    return f"{len(todo)} of {len(reasons)} run"


def make_tables() -> str:
    """Make the tables of the claims from the records, and the figure of README.md from its notebook."""
    from claims import write_tables
    from readme_figure import write_figure

    return f"{len(write_tables()) + write_figure()} changed"


def build_html() -> str:
    """Run Jupyter Book; its output goes to a log file, of which a failure shows what matters."""
    LOG.parent.mkdir(exist_ok=True)
    start = "import sys; from jupyter_book.cli.main import main; sys.argv[0] = 'jupyter-book'; main()"
    command = [sys.executable, "-c", start, "build", str(ROOT), "--all", "-W", "-n", "--keep-going"]
    with LOG.open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                              env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}).returncode
    if code:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", LOG.read_text(errors="replace")).splitlines()
        telling = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-30:]
        raise RuntimeError("\n".join(["jupyter-book failed:", *telling, f"(all of it: {LOG})"]))
    return f"log in {LOG.relative_to(ROOT)}"


def check_html() -> str:
    """Every page of the table of contents is there, and every page reads offline."""
    expected = [path.relative_to(ROOT).with_suffix(".html") for path in pages()]
    found = problems(HTML, expected)
    if found:
        raise RuntimeError("\n".join(["the built book is not whole:", *found]))
    return f"{len(expected)} pages"


def step(name: str, work: Callable[[], str]) -> None:
    """Do one step and print what it did and how long it took."""
    print(f"book: {name} ...", flush=True)
    start = time.monotonic()
    outcome = work()
    print(f"book: {name}: {outcome}, {time.monotonic() - start:.1f} s", flush=True)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rerun", action="store_true", help="run every notebook, stale or not")
    rerun = parser.parse_args().rerun
    try:
        step("notebooks", lambda: run_notebooks(rerun))
        step("tables and README figure", make_tables)
        step("pages", build_html)
        step("check", check_html)
    except Exception as error:
        from vitq.errors import InputError, MissingError

        print(f"book: FAILED: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3 if isinstance(error, MissingError) else 1
    print(f"book: open {HTML / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
