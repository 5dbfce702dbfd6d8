"""A griffe extension: docstrings as this project writes them, as Markdown (configs/mkdocs.yml)."""

import re
from typing import Any

from griffe import Extension, Module, Object

ROLE = re.compile(r":(?:func|class|meth|data|mod):`([^`]+)`")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
LEGEND = re.compile(r"^ {4}.*``.*$", re.MULTILINE)
DOCTEST = re.compile(r"(^ *>>> .*(?:\n *\S.*)*)", re.MULTILINE)


class Docstrings(Extension):
    """Cross-references, arguments that share a line, and doctests."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of a package that was just read."""
        self._rewrite(pkg)

    def _rewrite(self, obj: Object) -> None:
        if obj.docstring:
            text = ROLE.sub(lambda match: reference(match[1], obj), obj.docstring.value)
            if obj.is_module:  # what is indented becomes a block of code
                text = LEGEND.sub(lambda match: match[0].replace("``", ""), text)
            else:
                text = SHARED.sub(split_shared, text)
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\1\n```", text)
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member)


def reference(target: str, obj: Object) -> str:
    """Return a link to a name: a full one, or one of the object's own class or module.

    A name that no page shows stays text; tests/test_docs.py looks for names that there are not.
    """
    path, parent = target, obj.parent if obj.is_function else obj
    if not target.startswith("fairseq_fwm."):
        first, _, rest = target.partition(".")
        while parent is not None and first not in parent.members:
            parent = parent.parent
        if parent is None:
            return f"`{target}`"
        found = parent.members[first]
        path = ".".join(filter(None, (found.target_path if found.is_alias else found.path, rest)))
    shown = target.removeprefix("fairseq_fwm.")
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


def split_shared(match: re.Match) -> str:
    """Give each of ``q, k: text`` an entry of its own."""
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
