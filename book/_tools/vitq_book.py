"""Sphinx directives that make header boxes and tables from data, so that no number on a page is typed by hand."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import nbformat
from contents import table_file
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from wording import badge, duration, hardware, heading, is_number, memory, widen

logger = logging.getLogger(__name__)

FACTS = ("seconds", "peak_memory_mb", "scale", "hardware", "date")


class BookDirective(SphinxDirective):
    """What the directives share: warnings with a place, downloads, inline Markdown."""

    def warn(self, message: str) -> None:
        logger.warning(message, location=self.get_location(), type="vitq")

    def download(self, path: Path, text: str) -> addnodes.download_reference:
        target = "/" + path.relative_to(self.env.srcdir).as_posix()
        return addnodes.download_reference("", "", nodes.inline("", text), refdoc=self.env.docname, reftarget=target,
                                           refexplicit=True, refdomain="", reftype="download", refwarn=True)

    def inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.state.inline_text(text, self.lineno)
        return found + messages

    def body(self) -> list[nodes.Node]:
        holder = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, holder)
        return holder.children


class HeaderDirective(BookDirective):
    """The box at the top of a notebook: the body lists the objectives, the rest is read from the notebook."""

    has_content = True
    option_spec = {"prerequisites": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        box = nodes.container(classes=["vq-header"])
        box += nodes.paragraph("", "You will", classes=["vq-label"])
        box += self.body()
        if "prerequisites" in self.options:
            box += nodes.paragraph("", "Before you start", classes=["vq-label"])
            box += nodes.paragraph("", "", *self.inline(self.options["prerequisites"]))
        path = Path(self.env.doc2path(self.env.docname))
        if path.suffix != ".ipynb":
            self.warn("vitq-header belongs into a notebook")
            return [box]
        facts = nbformat.read(path, as_version=4).metadata.get("vitq", {})
        missing = [key for key in FACTS if key not in facts]
        if missing:
            self.warn(f"{path.name} does not say its {', '.join(missing)}: run it with `vitq run`")
        else:
            box += self.facts(facts)
        return [box, *self.stale(path)]

    def facts(self, facts: dict) -> nodes.field_list:
        rows = {
            "Shown": f"{facts['scale']} scale, run on {facts['date'][:10]}",
            "Time": duration(facts["seconds"]),
            "Memory": memory(facts["peak_memory_mb"]),
            "Hardware": hardware(facts["hardware"]),
        }
        items = [nodes.definition_list_item("", nodes.term("", key), nodes.definition("", nodes.paragraph("", value)))
                 for key, value in rows.items()]
        return nodes.definition_list("", *items, classes=["vq-facts"])

    def stale(self, path: Path) -> list[nodes.Node]:
        from vitq.provenance import is_stale

        stale, reason = is_stale(path)
        if not stale:
            return []
        note = nodes.paragraph("", f"What made these outputs has changed since ({reason}). "
                                   "`make book` runs the notebook again.")
        return [nodes.admonition("", nodes.title("", "These outputs are out of date"), note, classes=["warning"])]


class TableDirective(BookDirective):
    """A CSV file as a table with caption (the body), badges, links to records, and the file itself to download."""

    required_arguments = 1
    has_content = True
    notes: list[str] = []
    option_spec = {
        "name": directives.unchanged,
        "columns": directives.unchanged_required,  # comma-separated; default: all, in the order of the file
        "where": directives.unchanged_required,  # column=value, column=value
        "pivot": directives.unchanged_required,  # a column whose values become columns, filled with `value (std)`
    }

    def read(self) -> tuple[Path, list[dict[str, str]]] | None:
        name = self.arguments[0].removesuffix(".csv")
        path = table_file(name, Path(self.env.srcdir))
        self.env.note_dependency(str(path))
        if not path.is_file():
            self.warn(f"no file {path.relative_to(self.env.srcdir)}")
            return None
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            columns = reader.fieldnames or []
        if not rows:
            self.warn(f"{path.name} has no rows")
            return None
        if name.startswith("published/") and not all(row.get("source") for row in rows):
            self.warn(f"{path.name}: every published number needs a source")
        return path, self.select(path, columns, rows)

    def select(self, path: Path, columns: list[str], rows: list[dict[str, str]]) -> list[dict[str, str]]:
        for condition in filter(None, self.options.get("where", "").split(",")):
            key, _, value = (part.strip() for part in condition.partition("="))
            rows = [row for row in rows if row.get(key) == value]
        wanted = [c.strip() for c in self.options["columns"].split(",")] if "columns" in self.options else columns
        pivot = self.options.get("pivot")
        unknown = [c for c in [*wanted, *([pivot, "value"] if pivot else [])] if c not in columns]
        if unknown or not rows:
            self.warn(f"{path.name}: " + (f"no column {unknown}, it has {columns}" if unknown else "no such rows"))
            return []
        if not pivot:
            return [{c: row[c] for c in wanted} for row in rows]
        lines, self.notes = widen(rows, wanted, pivot)
        return lines

    def run(self) -> list[nodes.Node]:
        found = self.read()
        if found is None or not found[1]:
            return []
        path, rows = found
        table = nodes.table(classes=["vq-table"])
        self.set_source_info(table)
        self.add_name(table)
        caption = [child for part in self.body() for child in part.children]
        table += nodes.title("", "", *(caption or [nodes.Text(path.stem)]))
        columns = list(rows[0])
        numeric = {c for c in columns if any(is_number(r[c]) for r in rows)
                   and all(is_number(r[c]) or r[c] in ("", "-", "–") for r in rows)}
        group = nodes.tgroup(cols=len(columns))
        group += [nodes.colspec(colwidth=1) for _ in columns]
        group += nodes.thead("", nodes.row("", *(self.entry(heading(c), "", c in numeric) for c in columns)))
        group += nodes.tbody("", *(nodes.row("", *(self.entry(r[c], c, c in numeric) for c in columns)) for r in rows))
        table += group
        notes = [nodes.paragraph("", note, classes=["vq-note"]) for note in self.notes]
        data = nodes.paragraph("", "", self.download(path, path.name), classes=["vq-data"])
        return [nodes.container("", table, *notes, data, classes=["vq-block"])]

    def entry(self, text: str, column: str, numeric: bool) -> nodes.entry:
        classes = ["vq-number"] if numeric else [f"vq-col-{column}"] if column else []
        record = Path(self.env.srcdir, "book", "results", "records", f"{text.removesuffix('.json')}.json")
        if column == "verdict" and text:
            inside = badge(text)
        elif column == "record" and text and record.is_file():
            inside = self.download(record, record.stem)
        else:
            inside = nodes.Text((heading(text) if column == "metric" else text) or "–")
        return nodes.entry("", nodes.paragraph("", "", inside), classes=classes)


class VerdictsDirective(TableDirective):
    """One line that counts the verdicts of a table."""

    def run(self) -> list[nodes.Node]:
        found = self.read()
        if found is None:
            return []
        counts = Counter(row.get("verdict", "").split(":")[0] for row in found[1])  # the reason stays in the table
        line = nodes.paragraph("", f"{sum(counts.values())} rows: ", classes=["vq-counts"])
        for verdict, count in counts.most_common():
            line += [badge(verdict or "no verdict"), nodes.Text(f" × {count}   ")]
        return [line]


class NotebooksDirective(BookDirective):
    """The notebooks of one folder that the book has, with what it takes to run each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        prefix = f"notebooks/{self.arguments[0]}/"
        order = [name for name in self.config.external_site_map if name.startswith(prefix)]
        items = []
        for name in order:
            path = Path(self.env.doc2path(name))
            self.env.note_dependency(str(path))
            facts = nbformat.read(path, as_version=4).metadata.get("vitq", {})
            link = addnodes.pending_xref("", nodes.inline("", name), refdoc=self.env.docname, refdomain="std",
                                         reftype="doc", reftarget=f"/{name}", refexplicit=False, refwarn=True)
            text = ": not run yet"
            if not [key for key in FACTS if key not in facts]:
                text = f": {facts['scale']} scale, {duration(facts['seconds'])}, {memory(facts['peak_memory_mb'])}"
            items.append(nodes.list_item("", nodes.paragraph("", "", link, nodes.Text(text))))
        return [nodes.bullet_list("", *items)] if items else []


def setup(app: Sphinx) -> dict[str, bool | str]:
    """Register the directives."""
    app.add_directive("vitq-header", HeaderDirective)
    app.add_directive("vitq-table", TableDirective)
    app.add_directive("vitq-verdicts", VerdictsDirective)
    app.add_directive("vitq-notebooks", NotebooksDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
