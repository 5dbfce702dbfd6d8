"""The documentation says what is there: docstrings, snippets, links, the site."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from docstring_rules import problems
from fairseq_fwm.mixers import UpdateRule

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "kernels/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("ops", "nn", "mixers", "feature_maps", "inspection", "kernels_status")
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\s*)?^```python\n(?P<code>.*?)^```", re.M | re.S
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def public_names() -> list[tuple[str, object]]:
    """Every public name of the packages that need torch alone, with what it names."""
    modules = {package: importlib.import_module(f"fairseq_fwm.{package}") for package in PACKAGES}
    return [(f"{p}.{name}", getattr(m, name)) for p, m in modules.items() for name in m.__all__]


@pytest.mark.parametrize(
    ("name", "obj"), public_names(), ids=lambda x: x if type(x) is str else ""
)
def test_public_names_have_docstrings_with_shapes(name, obj):
    if not callable(obj):  # a registry, or the names of the sites
        return
    assert list(problems(obj, name)) == []


def undocumented(x: Tensor) -> Tensor:
    return x


def without_entry(x: Tensor, y: Tensor | None = None) -> None:
    """Add.

    Args:
        x: ``(N, T)``.
    """


def without_shape(x: Tensor) -> None:
    """Add.

    Args:
        x: what comes in (of any size).
    """


def referring_past_its_arguments(x: Tensor, y: Tensor) -> None:
    """Add; see :func:`fairseq_fwm.ops.causal_sum`.

    Args:
        x: ``(N, T)``.
    """


def silent_about_its_result(x: Tensor) -> tuple[Tensor, int]:
    """Add.

    Args:
        x: ``(N, T)``.

    Returns:
        The sum.
    """


def to_nowhere(x: Tensor) -> Tensor:
    """Add; see :func:`fairseq_fwm.ops.causal_product`."""


class Bare(NamedTuple):
    x: Tensor


class Holder:
    """Hold.

    Args:
        x: ``(N,)``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def put(self, x: Tensor) -> None:
        """Put, see the base class."""

    @property
    def size(self) -> int:
        return len(self.x)


@pytest.mark.parametrize(
    ("obj", "found"),
    [
        (undocumented, ["f has no docstring"]),
        (without_entry, ["f: no entry for the tensor y"]),
        (without_shape, ["f: no shape of the tensor x"]),
        (referring_past_its_arguments, ["f: no entry for the tensor y"]),
        (silent_about_its_result, ["f: no shape of what it returns"]),
        (to_nowhere, ["f: there is no fairseq_fwm.ops.causal_product"]),
        (Bare, ["f has no docstring"]),
        (Holder, ["f.put: no base class has put", "f.size has no docstring"]),
        (UpdateRule, []),
    ],
)
def test_the_check_of_docstrings_can_fail(obj, found):
    assert list(problems(obj, "f")) == found


def registered() -> list[str]:
    """The classes that register themselves with fairseq, by reading the sources."""
    folders = [ROOT / "fairseq_fwm" / name for name in ("models", "tasks", "criterions", "optim")]
    pattern = r"^@register_\w+\([^\n]*\n(?:@.*\n)*class (\w+)"
    return [
        f"{folder.name}.{file.stem}.{name}"
        for folder in folders
        for file in sorted(folder.glob("*.py"))
        for name in re.findall(pattern, file.read_text(), re.MULTILINE)
    ]


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    names = [name for name, obj in public_names() if callable(obj)] + registered()
    assert len(registered()) > 10
    shown = set(re.findall(r"^::: fairseq_fwm\.(\S+)$|`fairseq_fwm\.(\S+?)`", text, re.MULTILINE))
    assert set(names) - {name for pair in shown for name in pair} == set()


def snippets(page: Path) -> list[tuple[int, str, str | None]]:
    """Return (line, code, why it is not run) of every Python snippet of a page.

    A snippet is not run if an HTML comment before it gives the reason, as in
    ``<!-- not run: needs a GPU -->``, or if it names files under ``runs/``, which trainings make.
    """
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        why = match["why"] or ("needs a training" if "runs/" in match["code"] else None)
        found.append((text[: match.start("code")].count("\n"), match["code"], why))
    return found


RUNNER = """
import json, sys, torch, traceback
failed = {}
for page, parts in json.load(sys.stdin).items():
    torch.manual_seed(0)
    names = {"__name__": "snippet"}
    for line, code in parts:
        try:
            exec(compile("\\n" * line + code, page, "exec"), names)
        except BaseException:
            failed[page] = traceback.format_exc()
            break
print(json.dumps(failed))
"""


def run_snippets(pages: dict[str, list[tuple[int, str]]], folder: Path) -> dict[str, str]:
    """Run each page's snippets in order, sharing names; return the tracebacks of those that fail.

    In a process of their own: they may register feature maps and rules.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(pages),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_snippets_run(tmp_path):
    found = {name_of(page): snippets(page) for page in PAGES}
    pages = {
        name: [(line, code) for line, code, why in parts if why is None]
        for name, parts in found.items()
    }
    assert sum(map(len, pages.values())) > 10
    failed = run_snippets(pages, tmp_path)
    assert not failed, "\n".join(failed.values())


def test_a_broken_snippet_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\nx = 1\n```\n"
        "<!-- not run: an example -->\n```python\nthere is no\n```\n"
        "```python\nassert x == 2\n```\n"
    )
    (first, second, third) = snippets(page)
    assert second[2] == "an example" and first[2] is None and third[0] == 10
    failed = run_snippets({"page.md": [first[:2], third[:2]], "other.md": [first[:2]]}, tmp_path)
    assert list(failed) == ["page.md"]
    assert 'File "page.md", line 11' in failed["page.md"]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub and the site give to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text))


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    broken = []
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            broken.append(link)
        elif fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            if fragment not in map(anchor, headings):
                broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One, `two`\n[x](b.md) [y](#one-two) ![z](a.png) [w](a.md#no)"
    )
    assert broken_links(tmp_path / "a.md") == ["b.md", "a.png", "a.md#no"]


def test_pictures_are_those_of_the_script(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import draw_concepts

    files = {path.name for path in (ROOT / "docs/concepts").iterdir()}
    shown = set(re.findall(r"\(concepts/(\S+)\)", (ROOT / "docs/concepts.md").read_text()))
    assert shown == files == {f"{name}.svg" for name in draw_concepts.PICTURES}
    # what concepts.md says of two keys at an angle
    angles = torch.linspace(0, 1.5, 7)
    added, replaced = (draw_concepts.two_keys(angles, rule) for rule in ("sum", "delta"))
    torch.testing.assert_close(added[:, 0, 1], angles.cos())
    torch.testing.assert_close(replaced[:, 0, 0], angles.sin().square())
    torch.testing.assert_close(replaced[:, 1], torch.tensor([0.0, 1.0]).expand(7, 2))
    draw_concepts.main(["--only", "writing", "--out", str(tmp_path)])
    assert "<svg" in (tmp_path / "writing.svg").read_text()


def test_the_site_builds_without_warnings(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[docs]'")
    command = ["bash", ROOT / "scripts/build_docs.sh", "--out", tmp_path / "site", "--quiet"]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("index.html", "overview.html", "kernels.html", "results/multi30k.html"):
        assert (tmp_path / "site" / name).is_file()
