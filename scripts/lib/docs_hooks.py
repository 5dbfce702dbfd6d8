"""Hooks of the documentation site (configs/mkdocs.yml): pages from outside docs/, results.

The project's README and that of the kernels become pages, so that every link between documents
works both in the repository and in the site. Pages of docs/results/ enter the navigation by
themselves.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# What is not in docs/ and becomes a page: its name there.
OUTSIDE = {"README.md": "overview.md", "kernels/README.md": "kernels.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_config(config: Any) -> Any:
    """List the results, the index first."""
    pages = sorted((DOCS / "results").glob("*.md"), key=lambda page: (page.stem != "README", page))
    for entry in config.nav:
        if "Results" in entry:
            entry["Results"] = [{title(page): f"results/{page.name}"} for page in pages]
    return config


def title(page: Path) -> str:
    """Return a page's heading."""
    return page.read_text().lstrip("# ").partition("\n")[0]


def on_files(files: Files, config: Any) -> Files:
    """Add the documents that lie outside docs/, their links put right."""
    for source, page in OUTSIDE.items():
        content = moved(ROOT / source, (ROOT / source).read_text())
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Point links that leave docs/ to the pages of the site."""
    return (
        markdown
        if page.file.src_uri in OUTSIDE.values()
        else moved(DOCS / page.file.src_uri, markdown)
    )


def moved(source: Path, markdown: str) -> str:
    """Return the text of a document with the links that it has as a page of the site."""
    page = OUTSIDE.get(str(source.relative_to(ROOT)))
    here = (DOCS / page if page else source).parent

    def link(match: re.Match) -> str:
        target = (source.parent / match[1]).resolve()
        if target.is_dir():
            target /= "README.md"
        if not target.is_relative_to(ROOT):
            return match[1]
        name = str(target.relative_to(ROOT))
        return os.path.relpath(DOCS / OUTSIDE[name] if name in OUTSIDE else target, here)

    return LINK.sub(link, markdown)
