"""The README answers for what it says."""

import ast
import re
import subprocess


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


def test_every_script_is_in_the_list_of_scripts(root):
    folder = root / "scripts"
    listed = re.findall(r"`(\w+\.(?:py|sh))`", (folder / "README.md").read_text())
    there = [path.name for path in folder.iterdir() if path.suffix in (".py", ".sh")]
    assert set(listed) == set(there)


HELP = """
import runpy, sys
from contextlib import redirect_stdout
from pathlib import Path
from io import StringIO

root = Path(sys.argv[1])
paths = list(sys.path)
for script in sorted((root / "scripts").glob("*.py")):
    sys.path[:] = [str(script.parent), *paths[1:]]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if any(Path(file).is_relative_to(root / part) for part in ("scripts", "tests")):
            del sys.modules[name]
    sys.argv = [str(script), "--help"]
    text = StringIO()
    try:
        with redirect_stdout(text):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        assert end.code in (0, None), script
    assert "usage:" in text.getvalue(), script
"""


def test_every_script_explains_itself(root, run):
    run("-c", HELP, root)
    for script in (root / "scripts").glob("*.sh"):
        if script.name not in ("slurm_wmt14.sh", "keep_memory.sh"):
            done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
            assert done.returncode == 0 and "usage:" in done.stdout.lower(), script
