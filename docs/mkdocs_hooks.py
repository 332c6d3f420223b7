"""A hook of mkdocs: the configuration as one page a section, and the repository's pages that lie outside docs/.

`docs/recipes.md` stays one generated page, so that it can be searched in an editor; the site shows its parts.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
OUTSIDE = ("deploy/README.md", "CONTRIBUTING.md", "README.md")
"""Pages that the site shows though they lie outside docs/."""
CONFIGURATION = "reference/configuration"
WIDE = ("methods/", "recipes_verified.md")
"""Beginnings of pages whose tables need the room of the table of contents."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    for name in OUTSIDE:
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, name, content=relinked(text, PurePosixPath(name), outside=True)))
    for name, text in configuration((ROOT / "docs" / "recipes.md").read_text("utf-8")).items():
        files.append(File.generated(config, f"{CONFIGURATION}/{name}.md", content=text))
    for name in sorted(linked_files()):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.remove(next(file for file in files if file.src_uri == "README.md"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith(WIDE):
        page.meta["hide"] = ["toc"]
    inside = page.file.src_uri not in OUTSIDE and not page.file.src_uri.startswith(CONFIGURATION)
    return relinked(markdown, PurePosixPath("docs") / page.file.src_uri, outside=False) if inside else markdown


def relinked(text: str, page: PurePosixPath, *, outside: bool) -> str:
    """Return the page's text with its links, which are right in the repository, made right in the site."""
    here = page if outside else page.relative_to("docs")

    def target(link: re.Match[str]) -> str:
        place = posixpath.normpath(str(page.parent / link[1]))
        place = {"docs/recipes.md": f"docs/{CONFIGURATION}/index.md", "README.md": "docs/index.md"}.get(place, place)
        found = posixpath.relpath(place.removeprefix("docs/"), here.parent)
        anchor = link[2] or ""
        return found + ("" if place.startswith(f"docs/{CONFIGURATION}") else anchor)

    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


def linked_files() -> set[str]:
    """Return the files of the repository, other than pages, that pages link to."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in OUTSIDE)]
    found = set()
    for page in pages:
        for link, _ in LINK.findall(page.read_text("utf-8")):
            file = (page.parent / link).resolve()
            if file.is_file() and file.suffix != ".md" and ROOT / "docs" not in file.parents:
                found.add(str(file.relative_to(ROOT)))
    return found


def configuration(text: str) -> dict[str, str]:
    """Return the pages of the configuration by name: `index`, one per top-level section, one per kind of plug-in."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.M)
    pages: dict[str, list[str]] = {}
    for section in sections:
        title = section.splitlines()[0].removeprefix("## ")
        if kind := re.match(r"What `(.+)` can use", title):
            name = f"use_{kind[1].replace('.', '_')}"
        elif key := re.match(r"`\[+([a-z_]+)", title):
            name = key[1]
        else:
            name = title.lower().replace(" ", "_")
        pages.setdefault(name, []).append(section)
    found = {name: f"# {titled(name)}\n\n{''.join(parts)}" for name, parts in pages.items()}
    listed = "\n".join(f"- [{titled(name)}]({name}.md)" for name in found)
    return {"index": f"{head.replace('# Recipes', '# Configuration', 1)}\n{listed}\n"} | found


def titled(name: str) -> str:
    if name.startswith("use_"):
        return f"Plug-ins of `{name.removeprefix('use_')}`"
    return name.replace("_", " ").capitalize() if name in ("top_level", "names_in_other_tools") else f"`[{name}]`"
