"""The prepare_*.sh scripts of translation corpora: what they make, check, keep and refuse."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")
pytest.importorskip("babel", reason="babel is not installed")
pytest.importorskip("num2words", reason="num2words is not installed")
pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
pytest.importorskip("sacremoses", reason="sacremoses is not installed")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
pytest.importorskip("subword_nmt", reason="subword_nmt is not installed")

from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

import mt_data as mt

SCRIPTS = {"wmt14_ende": 32000, "wmt17_ende": 40000, "iwslt14_deen": 10000}
SMALL = ("--workers", 1, "--bpe-codes", 150, "--max-ratio", 9)


def made(directory, split, lang, pair="en-de"):
    """Return the binarised sentences of a split as text."""
    dictionary = Dictionary.load(str(directory / f"dict.{lang}.txt"))
    items = MMapIndexedDataset(str(directory / f"{split}.{pair}.{lang}"))
    return [dictionary.string(items[number]) for number in range(len(items))]


@pytest.fixture(scope="module")
def wmt14(tmp_path_factory):
    """WMT14 in the moses-bpe form, from archives."""
    directory = tmp_path_factory.mktemp("wmt14")
    source = mt.write_archives(directory / "in", mt.wmt_files(*mt.WMT14))
    out = directory / "out"
    done = mt.script("wmt14_ende", "--from", source, "--out", out, "--no-verify", *SMALL)
    return source, out, done.stdout


# ---------------------------------------------------------------- the scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_wrong_flags(name):
    said = mt.script(name, "--help").stdout
    assert max(map(len, said.splitlines())) < 100
    assert f"(default {SCRIPTS[name]})" in said
    assert f"(default data/{name}, or data/{name}_sp)" in said
    assert "unknown argument: --nonsense" in mt.script(name, "--nonsense", status=1).stderr
    assert "--from needs a value" in mt.script(name, "--from", status=1).stderr
    assert "--tokenised goes with --from" in mt.script(name, "--tokenised", status=2).stderr
    assert "--form must be" in mt.script(name, "--form", "bpe", status=1).stderr


def test_every_script_is_tested():
    scripts = (mt.ROOT / "scripts").glob("prepare_*.sh")
    found = {path.stem for path in scripts if "\nprepare_mt " in path.read_text()}
    assert found == {f"prepare_{name}" for name in SCRIPTS}


def test_digests_in_the_scripts_are_whole():
    for name in SCRIPTS:
        text = (mt.ROOT / "scripts" / f"prepare_{name}.sh").read_text()
        for digest in re.findall(r"sha256:(\S+)", text):
            assert re.fullmatch(r"[0-9a-f]{64}", digest)


# ---------------------------------------------------------------- WMT


def test_wmt14_is_made_of_its_archives(wmt14):
    _, out, said = wmt14
    assert "raw train: 300 pairs" in said
    assert "note: train was published with 4,520,620 pairs" in said
    assert mt.lines(out / "raw" / "train.de") == mt.side("train", "de")
    assert mt.lines(out / "ref" / "test.detok.de") == mt.side("test", "de")
    words = mt_moses(mt.side("test", "de"), "de")
    assert mt.lines(out / "ref" / "test.tok.de") == words
    assert [line.replace("@@ ", "") for line in made(out, "test", "de")] == words
    assert any("@@ " in line for line in made(out, "test", "de"))
    assert (out / "dict.en.txt").read_bytes() == (out / "dict.de.txt").read_bytes()
    assert made(out, "train", "en") == mt.lines(out / "text" / "train.en")
    facts = mt.record(out)
    assert facts["splits"]["valid"]["pairs"] == 12
    assert facts["form"] == "moses-bpe"
    assert facts["plain_reference"] == "raw"
    assert not facts["lowercase"]
    assert len(mt.lines(out / "text" / "bpe_codes")) == 151


def mt_moses(lines, lang):
    words = mt.mt_text.moses(lang)
    return [words(line).strip() for line in lines]


def test_running_again_changes_nothing(wmt14):
    source, out, _ = wmt14
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = mt.script("wmt14_ende", "--from", source, "--out", out, "--no-verify", *SMALL)
    assert f"already in {out}" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = mt.script("wmt14_ende", "--from", source, "--out", out, "--workers", 1, status=1)
    assert "made with other settings" in other.stderr
    assert '"bpe_codes": 32000' in other.stderr


def test_a_killed_run_is_gone_on_with(wmt14, tmp_path):
    source, whole, _ = wmt14
    arguments = ("--from", source, "--out", tmp_path / "out", "--no-verify", *SMALL)
    with subprocess.Popen(
        mt.command("wmt14_ende", *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=mt.environment(), start_new_session=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if "tokenising train.de" in line:
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert (tmp_path / "out" / "raw" / "step.json").is_file()
    assert not (tmp_path / "out" / "data.json").exists()
    done = mt.script("wmt14_ende", *arguments)
    assert f"raw: already in {tmp_path / 'out' / 'raw'}" in done.stdout
    assert mt.record(tmp_path / "out")["sha256"] == mt.record(whole)["sha256"]


def test_another_file_than_the_published_is_refused(wmt14, tmp_path):
    source, _, _ = wmt14
    done = mt.script("wmt14_ende", "--from", source, "--out", tmp_path / "out", status=1)
    assert "training-parallel-europarl-v7.tgz is not the published file" in done.stderr
    assert "expected sha256 0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e" in done.stderr
    assert "found    sha256 " in done.stderr
    assert "--no-verify" in done.stderr
    assert not (tmp_path / "out" / "raw").exists()


def test_wmt14_in_pieces_is_made_of_unpacked_files(tmp_path):
    source = mt.write_members(tmp_path / "in" / "below", mt.wmt_files(*mt.WMT14)).parent
    out = tmp_path / "out"
    flags = ("--form", "sentencepiece", "--from", source, "--out", out, *SMALL)
    mt.script("wmt14_ende", *flags)
    pieces = made(out, "test", "de")
    plain = [line.replace(" ", "").replace("▁", " ").strip() for line in pieces]
    same = sum(a == b for a, b in zip(plain, mt.side("test", "de"), strict=True))
    assert same >= 12  # NFKC changes some characters, and some are rare
    assert not (out / "ref" / "test.tok.de").exists()
    assert mt.lines(out / "ref" / "test.detok.de") == mt.side("test", "de")
    assert mt.record(out)["form"] == "sentencepiece"
    assert (out / "text" / "sentencepiece.model").is_file()


def test_wmt17_is_made_of_its_archives(tmp_path):
    source = mt.write_archives(tmp_path / "in", mt.wmt_files(*mt.WMT17))
    mt.script("wmt17_ende", "--from", source, "--out", tmp_path / "out", "--no-verify", *SMALL)
    assert mt.record(tmp_path / "out")["splits"]["test"]["pairs"] == 15
    assert mt.lines(tmp_path / "out" / "ref" / "valid.detok.de") == mt.side("valid", "de")


# ---------------------------------------------------------------- IWSLT


def test_iwslt14_is_made_of_its_archive(tmp_path):
    source, out = mt.write_archives(tmp_path / "in", mt.iwslt_files()), tmp_path / "out"
    done = mt.script("iwslt14_deen", "--from", source, "--out", out, *SMALL)
    assert "de-en.tgz: no published checksum; recorded sha256:" in done.stdout
    assert mt.lines(out / "raw" / "train.en") == mt.side("train", "en")
    assert mt.lines(out / "raw" / "test.de") == mt.side("test", "de")
    facts = mt.record(out)
    assert facts["splits"]["valid"]["pairs"] == 300 // 23
    assert facts["splits"]["train"]["pairs"] == 300 - 300 // 23
    assert facts["splits"]["test"]["pairs"] == 15
    assert facts["lowercase"]
    assert mt.lines(out / "ref" / "valid.detok.en") == mt.side("train", "en")[22::23]
    text = "\n".join(made(out, "train", "en", "de-en"))
    assert text == text.lower()
    assert facts["archives"]["de-en.tgz"].startswith("sha256:")


# ---------------------------------------------------------------- Multi30k


def test_multi30k_in_pieces(tmp_path):
    source = mt.write_plain(tmp_path / "in", valid="val", test="test_2016_flickr")
    arguments = ("--form", "sentencepiece", "--from", source, "--out", tmp_path / "out")
    refused = mt.script("multi30k", *arguments, status=1)
    assert "train.en is not the published file" in refused.stderr
    arguments = (*arguments, "--no-verify", "--bpe-codes", 150)
    mt.script("multi30k", *arguments)
    assert mt.record(tmp_path / "out")["splits"]["test"]["pairs"] == 15
    assert mt.lines(tmp_path / "out" / "ref" / "test.detok.de") == mt.side("test", "de")
    assert "already in" in mt.script("multi30k", *arguments).stdout


def test_the_published_form_of_multi30k_has_no_options():
    refused = mt.script("multi30k", "--bpe-codes", 9, status=1)
    assert "--bpe-codes goes with --form sentencepiece" in refused.stderr


# ---------------------------------------------------------------- text of one's own


def make(out, *flags, status=0):
    assert mt.mt_files.main(mt.facts("--out", out, *flags)) == status


def test_carving_takes_evenly_spaced_clean_pairs(tmp_path, capsys, monkeypatch):
    mt.write_plain(tmp_path / "in")
    monkeypatch.chdir(tmp_path)  # directories may be named from where one is
    source = Path("in")
    make(Path("out"), "--from", source, "--carve", 20)
    splits = mt.record(tmp_path / "out")["splits"]
    assert [splits[split]["pairs"] for split in ("valid", "test")] == [20, 20]
    plain = [set(mt.lines(tmp_path / "out" / "ref" / f"{s}.detok.de")) for s in ("valid", "test")]
    assert plain[0].isdisjoint(plain[1])
    assert plain[0] | plain[1] <= set(mt.side("train", "de"))
    assert "of 300 pairs stay" in capsys.readouterr().out
    make(tmp_path / "more", "--from", source, "--carve", 90, status=1)
    assert re.search(r"--carve 90 takes 180 pairs out of \d+", capsys.readouterr().err)


def test_tokenised_text_is_taken_as_it_is(tmp_path, shared):
    (tmp_path / "in").mkdir()
    for lang in ("en", "de"):
        with (shared / "data" / "wmt_slice" / f"train.{lang}").open() as file:
            text = "".join(next(file) for _ in range(800))
        (tmp_path / "in" / f"train.{lang}").write_text(text)
    out = tmp_path / "out"
    arguments = ("--from", tmp_path / "in", "--out", out, "--tokenised", "--carve", 40)
    make(out, *arguments, "--bpe-codes", 300, "--lowercase", "before")
    given = [" ".join(line.split()) for line in mt.lines(tmp_path / "in" / "train.de")]
    words = mt.lines(out / "ref" / "test.tok.de")
    assert len(words) == 40
    assert set(words) <= set(given)
    for word, line in zip(words, made(out, "test", "de"), strict=True):
        assert line.replace("@@ ", "") == word or "<unk>" in line  # of a rare character
    plain = (out / "ref" / "test.detok.de").read_text()
    assert " ." in " ".join(words)
    assert " ." not in plain
    assert "&amp;" not in plain
    assert "&quot;" not in plain
    assert mt.record(out)["plain_reference"] == "detokenised"
    assert mt.record(out)["lowercase"] is False, "what comes tokenised keeps its case"


def test_what_does_not_go_together_is_refused(tmp_path, capsys):
    source = mt.write_plain(tmp_path / "in")
    for flags, message in {
        ("--tokenised", "--form", "sentencepiece", "--from", source): "SentencePiece takes raw",
        ("--tokenised",): "--tokenised goes with --from",
        ("--workers", 0): "--workers: at least 1",
        ("--max-ratio", 0.5): "--max-ratio: at least 1",
    }.items():
        with pytest.raises(SystemExit):
            make(tmp_path / "out", *flags)
        assert message in capsys.readouterr().err
    make(tmp_path / "out", "--from", tmp_path / "nothing", status=1)
    assert "nothing is not a directory" in capsys.readouterr().err
    make(tmp_path / "out", "--from", source, "--tokenised", "--max-length", 1, status=1)
    assert "no pair of train is clean" in capsys.readouterr().err
    (source / "test.de").unlink()
    make(tmp_path / "out", "--from", source, "--bpe-codes", 90, status=1)
    assert "made with other settings" in capsys.readouterr().err
    make(tmp_path / "new", "--from", source, status=1)
    assert "has no test.en and test.de" in capsys.readouterr().err
    make(tmp_path / "new", "--from", source, "--carve", 20)  # nothing was there yet
    (tmp_path / "empty").mkdir()
    make(tmp_path / "third", "--from", tmp_path / "empty", "--tokenised", status=1)
    assert "no text of your own" in capsys.readouterr().err


def test_texts_of_different_length_are_refused(tmp_path, capsys):
    source = mt.write_plain(tmp_path / "in")
    with (source / "valid.de").open("a") as file:
        file.write("Einer mehr.\n")
    make(tmp_path / "out", "--from", source, status=1)
    assert re.search(r"valid\.en has 12 lines but \S+valid\.de has 13", capsys.readouterr().err)


def test_too_many_pieces_are_refused_with_the_cure(tmp_path, capsys):
    source = mt.write_plain(tmp_path / "in")
    flags = ("--from", source, "--form", "sentencepiece", "--bpe-codes", 30000)
    make(tmp_path / "out", *flags, status=1)
    assert "--bpe-codes N" in capsys.readouterr().err


def test_the_number_of_processes_changes_nothing(tmp_path):
    text, first, second = (tmp_path / name for name in "abc")
    text.write_text(mt.text(f"Number {n}." for n in range(3 * mt.mt_text.BLOCK + 7)))
    for dest, workers in ((first, 1), (second, 3)):
        mt.mt_text.map_file(text, dest, mt.mt_text.moses_lines, ("en", "", True, False), workers)
    assert first.read_bytes() == second.read_bytes()
    assert mt.lines(first)[-1] == f"Number {3 * mt.mt_text.BLOCK + 6} ."
    codes = [tmp_path / name for name in ("codes1", "codes2")]
    for number, path in enumerate(codes, 1):
        mt.mt_text.learn_bpe([first, second], path, 20, number)
    assert codes[0].read_bytes() == codes[1].read_bytes()
    assert len(mt.lines(codes[0])) == 21


def test_a_long_text_is_sampled_evenly(tmp_path, monkeypatch):
    (tmp_path / "a").write_text(mt.text(map(str, range(25))))
    assert len(list(mt.mt_text.sample(tmp_path / "a"))) == 25
    monkeypatch.setattr(mt.mt_text, "SAMPLE", 10)
    assert list(mt.mt_text.sample(tmp_path / "a")) == [str(n) for n in range(0, 25, 3)]


# ---------------------------------------------------------------- the first download's checksum


def test_an_unpublished_checksum_is_that_of_the_first_download(tmp_path, capsys):
    source = tmp_path / "host"
    members = {f"x/{split}.{lang}": mt.text(mt.side(split, lang))
               for split in mt.COUNTS for lang in ("en", "de")}  # fmt: skip
    path = mt.archive(source / "x.tgz", {f"{name}.txt": text for name, text in members.items()})
    flags = ["--archive", "x.tgz", path.as_uri(), "-"]
    for split in mt.COUNTS:
        flags += ["--part", split, f"x/{split}.en.txt", f"x/{split}.de.txt"]
    out = tmp_path / "out"
    make(out, *flags, "--max-length", 1, status=1)  # stopped after its download
    assert "x.tgz: no published checksum; recorded sha256:" in capsys.readouterr().out
    with (out / "download" / "x.tgz").open("ab") as file:
        file.write(b"more")
    mt.mt_files.shutil.rmtree(out / "raw")
    make(out, *flags, "--max-length", 1, status=1)
    assert "x.tgz is not the published file" in capsys.readouterr().err


def test_a_damaged_archive_is_said_so(tmp_path, capsys):
    path = mt.write_archives(tmp_path / "in", mt.iwslt_files()) / "de-en.tgz"
    path.write_bytes(path.read_bytes()[:-200])
    flags = ("--archive", "de-en.tgz", "file:///nowhere", "-", "--part", "train", "a.en", "a.de")
    make(tmp_path / "out", "--from", tmp_path / "in", *flags, status=1)
    assert "de-en.tgz is damaged" in capsys.readouterr().err


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("pair", "stays"),
    [
        (("a b c", "a b"), True),
        (("a b c d", "a b"), False),
        (("a b", "a b c d"), False),
        (("", "a"), False),
        (("a " * 9, "a " * 9), True),
        (("a " * 10, "a " * 9), False),
    ],
)
def test_clean_pairs(pair, stays):
    assert mt.mt_text.clean(pair, 9, 1.5) == stays


def test_where_pairs_go():
    placed = [mt.mt_steps.where(number, 100, 5, None) for number in range(1, 101)]
    assert [placed.count(split) for split in ("train", "valid", "test")] == [90, 5, 5]
    placed = [mt.mt_steps.where(number, 105, 5, None) for number in range(1, 106)]
    assert [placed.count(split) for split in ("train", "valid", "test")] == [95, 5, 5]
    placed = [mt.mt_steps.where(number, 50, None, 23) for number in range(1, 51)]
    assert [number for number, split in enumerate(placed, 1) if split == "valid"] == [23, 46]


def test_odd_characters_do_not_break_a_line():
    lines = list(mt.mt_sources.lines_of("x", [b"a\rb\xe2\x80\xa8c\xc2\x85 d\t e\n", b"f \xff\n"]))
    assert lines == ["a b c d e", "f \ufffd"]
    words = mt.mt_text.moses_lines("en", "after", True, True)
    assert words(["It’s a so\u200bng."]) == ["it &apos;s a so ng ."]
