"""What the tests of the translation data share: small corpora in the published files' form."""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from lib import mt_files, mt_sources, mt_steps, mt_text  # noqa: E402, F401

COUNTS = {"train": 300, "valid": 12, "test": 15}


@cache
def pairs(split, count=None):
    """Invented sentences with dates, times and prices, in English and German."""
    from fairseq_fwm.data.phrases import phrases

    return [(one.en, one.de) for one in phrases(split, count or COUNTS[split])]


def side(split, lang):
    return [pair[("en", "de").index(lang)] for pair in pairs(split)]


def text(lines):
    return "".join(f"{line}\n" for line in lines)


def sgml(lines):
    segments = "".join(f'<seg id="{n}">{line}</seg>\n' for n, line in enumerate(lines, 1))
    return f'<srcset setid="x">\n<doc docid="1">\n<p>\n{segments}</p>\n</doc>\n</srcset>\n'


def archive(path, members):
    """Write a .tgz of texts, the same bytes for the same texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


def wmt_files(commentary, valid, test):
    """The files of a WMT year, by archive; train is cut in three."""
    train = {lang: side("train", lang) for lang in ("en", "de")}
    cut = {
        "training-parallel-europarl-v7.tgz": ("training/europarl-v7.de-en", 0, 100),
        "training-parallel-commoncrawl.tgz": ("commoncrawl.de-en", 100, 200),
        f"training-parallel-nc-{commentary}.tgz": (
            f"training/news-commentary-{commentary}.de-en", 200, 300),
    }  # fmt: skip
    files = {
        name: {f"{stem}.{lang}": text(lines[a:b]) for lang, lines in train.items()}
        for name, (stem, a, b) in cut.items()
    }
    for split, (name, members) in {"valid": valid, "test": test}.items():
        files[name] = {
            member: sgml(side(split, lang))
            for lang, member in zip(("en", "de"), members, strict=True)
        }
    return files


WMT14 = ("v9",
         ("wmt13-test.tgz", ("test/newstest2013-src.en.sgm", "test/newstest2013-src.de.sgm")),
         ("wmt14-full-test-full.tgz", ("test-full/newstest2014-deen-src.en.sgm",
                                       "test-full/newstest2014-deen-ref.de.sgm")))  # fmt: skip
WMT17 = ("v12",
         ("wmt16-test.tgz", ("test/newstest2016-ende-src.en.sgm",
                             "test/newstest2016-ende-ref.de.sgm")),
         ("wmt17-test.tgz", ("test/newstest2017-ende-src.en.sgm",
                             "test/newstest2017-ende-ref.de.sgm")))  # fmt: skip
TALKS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


def iwslt_files():
    """The archive of IWSLT 2014: tagged talks, and the test's sentences spread over five files."""
    members = {}
    for lang in ("de", "en"):
        about = "<url>u</url>\n<keywords>k</keywords>\n<talkid>1</talkid>\n"
        title, description, *rest = side("train", lang)
        members[f"de-en/train.tags.de-en.{lang}"] = (
            f"{about}<title>{title}</title>\n<description>{description}</description>\n"
            + text(f" {line} " for line in rest)
        )
        lines = side("test", lang)
        for number, talk in enumerate(TALKS):
            name = f"de-en/IWSLT14.{talk}.de-en.{lang}.xml"
            members[name] = sgml(f" {line} " for line in lines[3 * number : 3 * number + 3])
    return {"de-en.tgz": members}


def write_archives(directory, files):
    for name, members in files.items():
        archive(directory / name, members)
    return directory


def write_members(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for members in files.values():
        for name, content in members.items():
            (directory / Path(name).name).write_text(content)
    return directory


def write_plain(directory, langs=("en", "de"), shuffle=None, **names):
    """Text of one's own; `shuffle` is a number to draw another order of the pairs by."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        chosen = list(pairs(split))
        if shuffle is not None:
            random.Random(shuffle).shuffle(chosen)
        for lang in langs:
            lines = [pair[("en", "de").index(lang)] for pair in chosen]
            (directory / f"{names.get(split, split)}.{lang}").write_text(text(lines))
    return directory


def command(name, *arguments):
    return ["bash", str(ROOT / "scripts" / f"prepare_{name}.sh"), *map(str, arguments)]


def environment():
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                         "VIRTUAL_ENV": sys.prefix}  # fmt: skip


def script(name, *arguments, status=0):
    done = subprocess.run(
        command(name, *arguments), capture_output=True, text=True, env=environment()
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done


def facts(*more, codes=120):
    flags = ["--name", "tiny", "--licence", "none", "--langs", "en", "de", "--normalise"]
    flags += ["--bpe-codes", codes, "--max-length", 100, "--max-ratio", 2.5]
    return [*map(str, (*flags, *more))]


def record(directory):
    return json.loads((directory / "data.json").read_text())


def lines(path):
    return path.read_text().split("\n")[:-1]
