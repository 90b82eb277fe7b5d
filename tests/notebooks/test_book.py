"""The book is whole: its pages, tables and exercises exist, it builds without a warning, and it reads offline."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from check_html import problems
from claims import made_tables, overall
from contents import ROOT, pages, table_file, tables

START = "import sys; from jupyter_book.cli.main import main; sys.argv[0] = 'jupyter-book'; main()"


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", START, "build", str(root), "--path-output", str(out), "-W", "-n", "--keep-going"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


TEXTS = {path.relative_to(ROOT).as_posix(): markdown(path) for path in pages()}


def test_every_page_is_in_the_table_of_contents():
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "book").rglob("*.md")} <= set(TEXTS)


def test_jupyter_book_is_the_version_that_builds_offline():
    import jupyter_book

    assert jupyter_book.__version__.startswith("1.")


def test_every_table_has_its_file():
    named = {table_file(name) for text in TEXTS.values() for name in tables(text)}
    assert len(named) >= 8
    assert not [path for path in named if not path.is_file()]


def test_tables_of_claims_are_what_the_records_say():
    stale = [name for name, table in made_tables().items()
             if table_file(name).read_text(encoding="utf-8") != table.to_csv(index=False, lineterminator="\n")]
    assert not stale, "run `make book`: it makes the tables again"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["not run: no GPU"] * 2, "not run: no GPU"),
        (["same direction", "baseline"], "same direction"),
        (["same direction"] * 2 + ["inconclusive within noise"], "same direction: 2 same, 0 opposite, 1 inconclusive"),
        (["same direction", "opposite direction"], "mixed: 1 same, 1 opposite, 0 inconclusive"),
        (["inconclusive: one seed", "not run: x"], "inconclusive within noise"),
        (["same direction"] + ["inconclusive within noise"] * 2,
         "inconclusive within noise: 1 same, 0 opposite, 2 inconclusive"),
        (["measured"], "measured: nothing to compare with"),
    ],
)
def test_verdict_on_a_claim(verdicts, expected):
    assert overall(verdicts) == expected


@pytest.mark.parametrize("page", TEXTS)
def test_exercises_have_hidden_solutions(page):
    exercises = re.findall(r"`{3,}\{exercise\}.*?:label: (\S+)", TEXTS[page], re.DOTALL)
    solutions = re.findall(r"`{3,}\{solution\} (\S+)\n:class: dropdown", TEXTS[page])
    assert sorted(exercises) == sorted(solutions)


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if "{solution}" in text])
def test_solutions_check_themselves(page):
    for solution in re.findall(r"(`{4,})\{solution\}(.*?)\n\1(?:\n|$)", TEXTS[page], re.DOTALL):
        code = "\n".join(re.findall(r"```python\n(.*?)```", solution[1], re.DOTALL))
        assert "assert" in code
        exec(compile(code, page, "exec"), {})


@pytest.mark.slow
def test_builds_without_a_warning_and_reads_offline(tmp_path):
    result = build(ROOT, tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    html = tmp_path / "_build" / "html"
    assert problems(html, [path.relative_to(ROOT).with_suffix(".html") for path in pages()]) == []
    assert (html / "_static" / "mathjax" / "tex-chtml-full.js").is_file() and (html / "searchindex.js").is_file()


@pytest.fixture
def small_book(tmp_path):
    """A book of one page that shows one table, with the tools and settings of the real one."""
    root = tmp_path / "root"
    for name in ("book/_tools", "book/_static", "book/_vendor"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "book/references.bib"):
        shutil.copy(ROOT / name, root / name)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (root / "book" / "index.md").write_text("# Page\n\n```{vitq-table} numbers\nCaption with $x^2$\n```\n")
    table = root / "book" / "results" / "tables" / "numbers.csv"
    table.parent.mkdir(parents=True)
    table.write_text("what,value,verdict\nA,1.5 (0.1),same direction\nB,2.5,not run: no GPU\n")
    return root


def test_table_is_made_from_its_file(small_book, tmp_path):
    result = build(small_book, tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    page = (tmp_path / "_build" / "html" / "book" / "index.html").read_text()
    assert "1.5 (0.1)" in page and "vq-agree" in page and "not run: no GPU" in page and "numbers.csv" in page


def test_table_without_its_file_fails_the_build(small_book, tmp_path):
    (small_book / "book" / "results" / "tables" / "numbers.csv").unlink()
    result = build(small_book, tmp_path)
    assert result.returncode != 0 and "numbers.csv" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script src='https://cdn.example/x.js'></script>", "loads https://cdn.example/x.js"),
        ("<link rel='stylesheet' href='//cdn.example/x.css'>", "loads //cdn.example/x.css"),
        ("<script>import('https://cdn.example/x.js')</script>", "inline script"),
        ("<style>@import 'https://cdn.example/x.css';</style>", "inline script or style"),
        ("<a href='missing.html'>x</a>", "missing.html leads nowhere"),
        ("<a href='#missing'>x</a>", "no such anchor"),
        ("<a href='https://example.org'>a link may lead out</a><p id='here'></p><a href='#here'>x</a>", None),
    ],
)
def test_html_check_finds(tmp_path, body, complaint):
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    found = problems(tmp_path, [Path("index.html")])
    assert (complaint in found[0]) if complaint else found == []


def test_html_check_misses_no_page(tmp_path):
    (tmp_path / "index.html").write_text("<html></html>")
    assert problems(tmp_path, [Path("book/gone.html")]) == ["book/gone.html: the page was not built"]
