"""The README answers for what it says."""

import ast
import re


def raised_texts(path):
    """The constant words of every error that a file raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts = (n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant))
            words = " ".join(part for part in parts if isinstance(part, str))
            if words.strip():
                yield words


def test_every_error_text_has_its_cure(root):
    """Some words of every error that the library raises stand in a table of troubleshooting."""
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    table = "".join(page.read_text().partition("## Troubleshooting")[2] for page in pages)
    phrases = [phrase.split("...") for phrase in re.findall(r"`([^`]+)`", table)]
    files = [p for p in (root / "fairseq_fwm").rglob("*.py") if "data" not in p.parts]
    texts = [(path.name, words) for path in files for words in raised_texts(path)]
    assert len(texts) > 15
    for name, words in texts:
        found = any(all(part.strip() in words for part in phrase) for phrase in phrases)
        assert found, f"{name}: README and docs have no cure for: {words}"
