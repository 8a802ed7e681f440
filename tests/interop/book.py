#!/usr/bin/env python3
"""Every link of the rendered book leads to a file of it, and to a place in that file. Needs the standard library only.

usage: book.py FOLDER
"""

import html.parser
import pathlib
import sys
import urllib.parse

# All pages once more, and what is shown for addresses that are none: their links are relative to elsewhere.
NOT_PAGES = {"print.html", "404.html"}


class Page(html.parser.HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif value and (name, tag) in {("href", "a"), ("href", "link"), ("src", "img"), ("src", "script")}:
                self.targets.append(value)


def main() -> None:
    root = pathlib.Path(sys.argv[1]).resolve()
    pages = {path: Page(path) for path in root.rglob("*.html") if path.name not in NOT_PAGES}
    broken, checked = [], 0
    for path, page in pages.items():
        for target in page.targets:
            link = urllib.parse.urlsplit(target)
            if link.scheme or link.netloc:
                continue
            checked += 1
            file = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
            place = urllib.parse.unquote(link.fragment)
            known = pages.get(file)
            if not file.is_file() or (place and known and place not in known.places):
                broken.append(f"{path.relative_to(root)}: {target}")
    if broken or checked < 100:
        sys.exit("\n".join([*broken, f"{len(broken)} broken links of {checked}"]))
    print(f"{checked} links in {len(pages)} pages of the book lead somewhere")


if __name__ == "__main__":
    main()
