"""scripts/prepare_multi30k.sh and the steps it is made of."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from lib import multi30k_files as files  # noqa: E402


def fill(directory, names, text="a b\nc d\n", suffix=".gz"):
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = text.encode()
        (directory / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return directory


def prepare(*arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "prepare_multi30k.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | environment,
    )


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("form", ["raw", "bpe"])
def test_recognises_the_form(tmp_path, form, suffix):
    assert files.recognise(fill(tmp_path, files.FORMS[form], suffix=suffix)) == form


def test_an_incomplete_directory_is_refused_with_what_it_lacks(tmp_path):
    fill(tmp_path, [name for name in files.BPE if name != "valid.de"])
    with pytest.raises(files.DataError, match=r"BPE'd files missing: valid\.de$"):
        files.recognise(tmp_path)


def test_a_directory_of_both_forms_is_refused(tmp_path):
    fill(fill(tmp_path, files.BPE), files.RAW)
    with pytest.raises(files.DataError, match="both"):
        files.recognise(tmp_path)


def test_a_wrong_file_is_refused_with_expected_and_found(tmp_path):
    fill(tmp_path / "in", files.RAW)
    with pytest.raises(files.DataError) as error:
        files.take(tmp_path / "in", ["val.de"], "raw", tmp_path / "out", verify=True)
    message = str(error.value)
    assert "val.de.gz" in message
    assert f"expected 1014 lines, SHA-256 {files.RAW['val.de'].sha256}" in message
    found = hashlib.sha256(b"a b\nc d\n").hexdigest()
    assert f"found    2 lines, SHA-256 {found}" in message
    assert "--no-verify" in message
    assert not (tmp_path / "out").exists()


def test_no_verify_takes_any_text(tmp_path):
    fill(tmp_path / "in", files.RAW)
    files.take(tmp_path / "in", files.RAW, "raw", tmp_path / "out", verify=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files.RAW)
    assert (tmp_path / "out" / "val.de").read_text() == "a b\nc d\n"


def test_a_gzip_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "val.de.gz"
    path.write_bytes(gzip.compress(b"a b\n" * 100)[:-9])
    with pytest.raises(files.DataError, match="damaged"):
        files.read_text(path)


def test_languages_of_different_length_are_refused(tmp_path):
    fill(tmp_path, files.RAW, suffix="")
    (tmp_path / "val.de").write_text("one\n")
    with pytest.raises(files.DataError, match=r"val\.en has 2 lines but .*val\.de has 1"):
        files.check_directory(tmp_path, "raw", verify=False)


def test_writing_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("lang", "raw", "expected"),
    [
        ("en", "Someone's arms.", "someone &apos;s arms ."),
        ("en", "A motorcycle .`", "a motorcycle . &apos; "),
        ("de", 'Er sagt: "Tee."', "er sagt : &quot; tee &quot; ."),
        ("de", "Das „Hook ’em“-Zeichen.", "das &quot; hook &quot; em &quot; -zeichen ."),
    ],
)
def test_tokenises_as_the_published_files_are(lang, raw, expected):
    assert list(files.tokenise([raw], lang)) == [expected]


def test_references_say_what_they_are(tmp_path):
    bpe = fill(tmp_path / "text", files.BPE, "ein hu@@ t , &quot; rot &quot; .\n", suffix="")
    files.write_references(bpe, tmp_path / "raw", tmp_path)
    assert (tmp_path / "ref" / "test.tok.de").read_text() == "ein hut , &quot; rot &quot; .\n"
    assert (tmp_path / "ref" / "test.detok.de").read_text() == 'ein hut, "rot".\n'
    assert json.loads((tmp_path / "data.json").read_text())["plain_reference"] == "detokenised"

    fill(tmp_path / "raw", files.RAW, 'Ein Hut, "rot".\n', suffix="")
    files.write_references(bpe, tmp_path / "raw", tmp_path)
    assert (tmp_path / "ref" / "test.detok.de").read_text() == 'Ein Hut, "rot".\n'
    assert json.loads((tmp_path / "data.json").read_text())["plain_reference"] == "raw"


def test_bad_arguments_are_refused(tmp_path):
    assert "unknown argument: --nonsense" in prepare("--nonsense").stderr
    assert "--from needs a directory" in prepare("--from").stderr
    result = prepare("--from", tmp_path / "nothing", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "nothing is not a directory" in result.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_without_network_the_error_names_from(tmp_path):
    result = prepare("--out", tmp_path / "out", MULTI30K_URL="file:///nowhere")
    assert result.returncode == 1
    assert "cannot download file:///nowhere/train.en.gz" in result.stderr
    assert "--from DIR" in result.stderr


def test_published_checksums(shared):
    for form, directory in (("raw", "multi30k"), ("bpe", "multi30k_bpe")):
        assert files.recognise(shared / "data" / directory) == form
        for name, expected in files.FORMS[form].items():
            path = files.find(shared / "data" / directory, name)
            files.check(path, files.read_text(path), expected)


@pytest.mark.parametrize("lang", ["en", "de"])
def test_raw_validation_text_becomes_the_published_one(shared, lang):
    raw = (
        files.read_text(shared / "data" / "multi30k" / f"val.{lang}.gz").decode().split("\n")[:-1]
    )
    bpe = files.read_text(shared / "data" / "multi30k_bpe" / f"valid.{lang}.gz").decode()
    assert list(files.tokenise(raw, lang)) == files.join_bpe(bpe).split("\n")[:-1]


@pytest.mark.slow
def test_both_forms_give_the_data_of_plain_fairseq_preprocess(shared, tmp_path):
    for form, directory in (("raw", "multi30k"), ("bpe", "multi30k_bpe")):
        result = prepare("--from", shared / "data" / directory, "--out", tmp_path / form)
        assert result.returncode == 0, result.stderr
    text, plain = tmp_path / "bpe" / "text", tmp_path / "plain"
    subprocess.run(
        [Path(sys.executable).parent / "fairseq-preprocess", "-s", "en", "-t", "de"]
        + ["--joined-dictionary", "--destdir", plain, "--trainpref", text / "train"]
        + ["--validpref", text / "valid", "--testpref", text / "test.2016"],
        check=True,
        capture_output=True,
    )
    names = [path.name for path in plain.iterdir() if path.name != "preprocess.log"]
    assert len(names) == 14
    for name in names:
        for form in ("raw", "bpe"):
            assert (tmp_path / form / name).read_bytes() == (plain / name).read_bytes(), name
    again = prepare("--out", tmp_path / "bpe", "--raw", shared / "data" / "multi30k")
    assert "text: already in" in again.stdout
    assert "binarised: already in" in again.stdout
    assert json.loads((tmp_path / "bpe" / "data.json").read_text())["plain_reference"] == "raw"
