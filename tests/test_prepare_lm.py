"""The prepare_*.sh scripts of language modelling corpora: words, what is checked, what is kept."""

import contextlib
import hashlib
import random

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.data import Dictionary

from lm_data import (
    ROOT,
    SPLITS,
    TEXT,
    WORDS,
    decoded,
    facts,
    fill,
    items,
    lm_files,
    make,
    record,
    script,
    sha,
    words,
)

LICENCES = {
    "wikitext103": "CC BY-SA 3.0",
    "wikitext2": "CC BY-SA 3.0",
    "ptb": "LDC",
    "enwik8": "CC BY-SA and GFDL",
    "text8": "CC BY-SA and GFDL",
    "tinyshakespeare": "public domain",
    "stdlib": "PSF",
}


# ---------------------------------------------------------------- the scripts


@pytest.mark.parametrize("name", LICENCES)
def test_help(name):
    result = script(name, "--help")
    assert result.returncode == 0, result.stderr
    licences = [line for line in result.stdout.splitlines() if line.startswith("licence: ")]
    assert len(licences) == 1
    assert LICENCES[name] in licences[0]
    assert f"default data/{name})" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 100
    assert ("--url" in result.stdout) == (name != "stdlib")
    assert ("--small" in result.stdout) == (name == "wikitext2")
    wrong = script(name, "--nonsense")
    assert wrong.returncode == 1
    assert "unknown argument: --nonsense" in wrong.stderr


def test_every_script_is_tested():
    found = {
        path.stem for path in ROOT.glob("scripts/*.sh") if "\nprepare_lm " in path.read_text()
    }
    assert found == {f"prepare_{name}" for name in LICENCES}


def test_a_script_makes_data_and_says_what_is_not_the_published(tmp_path):
    source = fill(tmp_path / "in", words(), "ptb.{}.txt")
    arguments = ("--from", source, "--out", tmp_path / "out", "--workers", 1)
    refused = script("ptb", *arguments)
    assert refused.returncode == 1
    assert "in/ptb.train.txt is not the published file" in refused.stderr
    assert "expected sha256 fcea919f" in refused.stderr
    assert sha(words()["train"]).replace(":", " ") in refused.stderr
    assert "--no-verify" in refused.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]

    taken = script("ptb", *arguments, "--no-verify")
    assert taken.returncode == 0, taken.stderr
    lines = taken.stdout.splitlines()
    assert lines[0].startswith("prepare_ptb.sh: licence: LDC")
    assert "prepare_ptb.sh: note: train tokens: 16, published 929,589" in lines
    assert hashlib.sha256(words()["train"]).hexdigest() in taken.stdout
    assert record(tmp_path / "out")["licence"].startswith("LDC")


def test_bad_arguments_are_refused(tmp_path):
    assert "--from needs a value" in script("text8", "--from").stderr
    assert "unknown argument: --url" in script("stdlib", "--url", "x").stderr
    assert "--workers: at least 1" in script("text8", "--workers", "0").stderr
    missing = script("enwik8", "--from", tmp_path / "nothing", "--out", tmp_path / "out")
    assert missing.returncode == 1
    assert "nothing is not a directory" in missing.stderr


# ---------------------------------------------------------------- words


def test_a_line_is_an_item_and_an_empty_line_a_lone_end(tmp_path):
    out = make(tmp_path, "word", words(), "--tokens", 16, 6, 3, "--types", 7)
    dictionary = Dictionary.load(str(out / "dict.txt"))
    for split in SPLITS:
        lines = WORDS[split].split("\n")[:-1]
        wanted = [[*map(dictionary.index, line.split()), dictionary.eos()] for line in lines]
        assert items(out, split) == wanted
    assert items(out, "train")[0] == [dictionary.eos()]
    assert record(out)["splits"]["valid"] == {"lines": 3, "bytes": 8, "tokens": 6, "unknown": 2}
    assert record(out)["types"] == 7  # b = c Title a, <unk> and </s>


def test_the_dictionary_has_the_words_of_the_training_text_by_frequency(tmp_path):
    out = make(tmp_path, "word", words())
    assert (out / "dict.txt").read_text() == "b 3\n= 2\nc 2\nTitle 1\na 1\n"


def test_the_number_of_processes_changes_nothing(tmp_path):
    chooser = random.Random(1)
    lines = [" ".join(chooser.choices("abcdefg", k=chooser.randrange(9))) for _ in range(200)]
    texts = words(train="".join(f"{line}\n" for line in lines))
    first = make(tmp_path / "1", "word", texts)
    second = make(tmp_path / "3", "word", texts, "--workers", 3)
    assert record(first)["sha256"] == record(second)["sha256"]


def test_small_cuts_the_validation_text(tmp_path):
    texts = words(valid="".join(f"w{n}\n\n" for n in range(10)))
    source = fill(tmp_path / "in", {split: texts[split] for split in ("valid", "test")})
    arguments = facts("word", texts, "--from", source, "--out", tmp_path / "out", "--small")
    assert lm_files.main([*arguments, "--tokens", "9", "9", "9"]) == 0
    sizes = record(tmp_path / "out")["splits"]
    assert [sizes[split]["lines"] for split in SPLITS] == [18, 2, 1]
    assert sizes["valid"] == {"lines": 2, "bytes": 4, "tokens": 3, "unknown": 1}  # w9 is new
    assert sizes["test"]["unknown"] == 2
    kept = (tmp_path / "out" / "text" / "train.txt").read_bytes()
    assert kept + (tmp_path / "out" / "text" / "valid.txt").read_bytes() == texts["valid"]


def test_published_numbers_are_checked(tmp_path, capsys):
    source = fill(tmp_path / "in", words())
    arguments = facts("word", words(), "--from", source, "--out", tmp_path / "out")
    arguments += ["--tokens", "16", "6", "4", "--types", "8"]
    assert lm_files.main(arguments) == 1
    error = capsys.readouterr().err
    assert "test tokens: 3, published 4\n  different tokens: 7, published 8\n" in error
    assert not (tmp_path / "out" / "data.json").exists()
    assert not (tmp_path / "out" / "dict.txt").exists()
    assert lm_files.main([*arguments, "--no-verify", "--out", str(tmp_path / "2")]) == 0
    assert "note: test tokens: 3, published 4" in capsys.readouterr().out


# ---------------------------------------------------------------- once more


def stamps(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_what_is_there_is_kept(tmp_path, capsys):
    texts = {"all": TEXT}
    out = make(tmp_path, "byte", texts)
    before = stamps(out)
    arguments = facts("byte", texts, "--out", out)  # nothing at hand any more
    assert lm_files.main(arguments) == 0
    assert stamps(out) == before
    assert hashlib.sha256(TEXT[:4500]).hexdigest() in capsys.readouterr().out
    assert not list(out.glob(".work"))

    whole = (out / "train.bin").read_bytes()
    (out / "train.bin").write_bytes(whole[:100])
    assert lm_files.main(arguments) == 0
    assert (out / "train.bin").read_bytes() == whole
    assert f"text: already in {out / 'text'}" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lm_files.lm_binarise, "binarise_characters", interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            make(tmp_path, "byte", {"all": TEXT})
    assert not (tmp_path / "out" / "data.json").exists()
    assert lm_files.main(facts("byte", {"all": TEXT}, "--out", tmp_path / "out")) == 0
    assert "text: already in" in capsys.readouterr().out
    assert items(tmp_path / "out", "test")


def test_other_settings_need_another_directory(tmp_path, capsys):
    out = make(tmp_path, "byte", {"all": TEXT})
    source = tmp_path / "in"
    other = facts("character", {"all": TEXT}, "--from", source, "--out", out)
    assert lm_files.main(other) == 1
    assert "made with other settings" in capsys.readouterr().err
    unverified = facts("byte", {"all": TEXT}, "--from", source, "--out", tmp_path / "2")
    assert lm_files.main([*unverified, "--no-verify"]) == 0
    assert lm_files.main(unverified) == 1  # nobody knows what that is
    assert lm_files.main([*facts("byte", {"all": TEXT}, "--out", out), "--no-verify"]) == 0


def test_a_directory_of_others_is_left_alone(tmp_path, capsys):
    mine = fill(tmp_path / "out" / "text", {"notes": b"mine"})
    source = fill(tmp_path / "in", {"all": TEXT})
    arguments = facts("byte", {"all": TEXT}, "--from", source, "--out", tmp_path / "out")
    assert lm_files.main(arguments) == 1
    assert "text is not from this script" in capsys.readouterr().err
    assert (mine / "tiny.notes").read_bytes() == b"mine"
    (tmp_path / "out" / "data.json").write_text('{"sha256": {}}')
    assert lm_files.main(arguments) == 1
    assert "made with other settings" in capsys.readouterr().err


def test_text_that_is_not_utf_8_is_refused(tmp_path, capsys):
    texts = {"all": bytes(range(256))}
    arguments = facts("character", texts, "--from", fill(tmp_path / "in", texts))
    assert lm_files.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "the text is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("unit", "texts"), [("byte", {"all": b"abc"}), ("word", words(test=""))])
def test_a_split_cannot_be_empty(tmp_path, capsys, unit, texts):
    source = fill(tmp_path / "in", texts)
    assert lm_files.main(facts(unit, texts, "--from", source, "--out", tmp_path / "out")) == 1
    assert "the text is too short: nothing is left for" in capsys.readouterr().err


def test_wikitext2_without_its_training_text(shared, tmp_path):
    source = shared / "data" / "wikitext2"
    result = script("wikitext2", "--small", "--from", source, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    sizes = record(tmp_path / "out")["splits"]
    assert [sizes[split]["lines"] for split in SPLITS] == [3384, 376, 4358]
    assert sizes["train"]["tokens"] + sizes["valid"]["tokens"] == 217_646
    assert sizes["test"]["tokens"] == 245_569


def test_tiny_shakespeare(shared, tmp_path, capfdbinary):
    source, out = shared / "data" / "tinyshakespeare", tmp_path / "out"
    result = script("tinyshakespeare", "--from", source, "--out", out)
    assert result.returncode == 0, result.stderr
    assert record(out)["types"] == 65
    sizes = [record(out)["splits"][split]["tokens"] for split in SPLITS]
    assert sizes == [1_003_854, 55_770, 55_770]
    text = b"".join(decoded(out, split, capfdbinary) for split in SPLITS)
    assert text == (source / "input.txt").read_bytes()
