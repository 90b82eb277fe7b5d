"""Checks on built HTML: pages exist, local links lead somewhere, nothing is fetched from the network to show a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# tag -> attribute whose address the browser fetches on its own
FETCHED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src")
FETCHED_LINKS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut", "manifest", "preconnect", "prefetch"}
CODE_IMPORT = re.compile(r"""(?:\bimport\b|\bfrom\b|importScripts\()\s*\(?\s*["'](?:https?:)?//""")
CSS_IMPORT = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?:https?:)?//""")


class Page(HTMLParser):
    """Collects what a page loads by itself and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.inline: list[str] = []
        self.anchors: set[str] = set()
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort the addresses of one tag."""
        values = {key: value or "" for key, value in attrs}
        self.anchors.update(values[key] for key in ("id", "name") if key in values)
        if tag in FETCHED and values.get(FETCHED[tag]):
            self.loads.append(values[FETCHED[tag]])
        if tag == "link" and FETCHED_LINKS & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.inside = tag if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        """Keep inline scripts and styles."""
        if self.inside:
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave a script or style."""
        self.inside = None


def is_external(address: str) -> bool:
    """Whether an address leads to the network."""
    return bool(re.match(r"(https?:)?//", address.strip(), re.IGNORECASE))


def read(path: Path) -> Page:
    """Parse one HTML file."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    return page


def problems(html: Path, expected: list[Path]) -> list[str]:
    """What is wrong with a built book, one line each; an empty list is a whole book."""
    wanted = [Path("index.html"), *expected]
    found = [f"{name}: the page was not built" for name in wanted if not (html / name).is_file()]
    parsed = {path: read(path) for path in sorted(html.rglob("*.html")) if "_static" not in path.parts}
    for path, page in parsed.items():
        name = path.relative_to(html)
        found += [f"{name}: loads {address} from the network" for address in page.loads if is_external(address)]
        if any(CODE_IMPORT.search(text) or CSS_IMPORT.search(text) for text in page.inline):
            found.append(f"{name}: an inline script or style loads from the network")
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors:
                found.append(f"{name}: {address}: no such anchor")
    for sheet in html.rglob("*.css"):
        if CSS_IMPORT.search(sheet.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{sheet.relative_to(html)}: a style sheet loads from the network")
    return found
