"""Characters, bytes and pieces as data of fairseq, and back."""

import random

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.data import Dictionary
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

from lm_data import (
    SPLITS,
    data_files,
    decoded,
    items,
    lm_files,
    lm_texts,
    lm_tokens,
    make,
    record,
    words,
)

# ---------------------------------------------------------------- characters and bytes


ODD = "To be,\tor not\n\nto be: <0x20> <unk> </s> \\n é ▁ \u00a0\u2028€\r\n\x00𝄞 日本" * 7


@pytest.mark.parametrize(
    ("unit", "text"),
    [("character", ODD.encode()), ("byte", ODD.encode() + bytes(range(256)) * 2)],
)
def test_characters_come_back(tmp_path, capfdbinary, unit, text):
    out = make(tmp_path, unit, {"all": text})
    assert b"".join(decoded(out, split, capfdbinary) for split in SPLITS) == text
    dictionary = Dictionary.load(str(out / "dict.txt"))
    count = len(text) if unit == "byte" else len(text.decode())
    tokens = [number for split in SPLITS for item in items(out, split) for number in item]
    assert len(tokens) == count
    assert min(tokens) >= dictionary.nspecial  # no </s>, no <unk>
    different = set(text) if unit == "byte" else set(text.decode())
    assert len(dictionary) == dictionary.nspecial + len(different) == record(out)["types"] + 4


def test_what_cannot_be_printed_has_a_number():
    assert [lm_tokens.to_token(one, "character") for one in "a<é \n\u2028"] == [
        "a", "<", "é", "<0x20>", "<0x0A>", "<0x2028>"
    ]  # fmt: skip
    assert lm_tokens.to_token("é", "byte") == "<0xE9>"
    with pytest.raises(ValueError, match="'the' is no character"):
        lm_tokens.from_token("the")


@pytest.mark.parametrize("length", [100, 1000, 1_115_394])
def test_nine_tenths_a_twentieth_and_the_rest(length):
    parts = lm_texts.cut_whole(bytes(length), "byte")
    assert [len(part) for part in parts[:2]] == [
        length * 90 // 100,
        length * 95 // 100 - length * 90 // 100,
    ]
    assert sum(map(len, parts)) == length


def test_characters_are_not_cut_but_bytes_are():
    text = ("a" * 89 + "€" + "b" * 8).encode()
    assert lm_texts.cut_whole(text, "character")[0] == ("a" * 89 + "€").encode()
    assert lm_texts.cut_whole(text, "byte")[0] == text[:90]


def test_characters_by_frequency_in_the_training_text(tmp_path):
    out = make(tmp_path, "character", {"all": b"a bb  \nccc" * 9 + b"zyzyzyzyzy"})
    assert (out / "dict.txt").read_text() == ("<0x20> 27\nc 27\nb 18\n<0x0A> 9\na 9\ny 0\nz 0\n")


def test_fairseq_reads_characters_as_one_stream(tmp_path):
    text = bytes(random.Random(2).choices(b"abc \n", k=60_000))
    out = make(tmp_path, "character", {"all": text})
    config = LanguageModelingConfig(
        data=str(out), tokens_per_sample=100, dataset_impl=None, use_plasma_view=False
    )
    task = LanguageModelingTask.setup_task(config)
    task.load_dataset("valid")
    targets = [number for sample in task.dataset("valid") for number in sample["target"].tolist()]
    assert lm_tokens.Codec(out).decode(targets) == text[54_000:57_000]


# ---------------------------------------------------------------- pieces of source files


LIBRARY = {
    **{f"part{n}.py": f"def f{n}(x):\n    return x + {n}\n\n\n" * 9 for n in range(60)},
    "package/old.py": "# -*- coding: latin-1 -*-\nname = 'é'\n",
    "package/unusual.py": "if x:\n\ty = '<s> ▁ \u00a0 日本'\n\f\n        # no end",
    "test/test_module.py": "assert False\n",
    "package/tests/test_old.py": "assert False\n",
    "site-packages/other.py": "assert False\n",
    "_sysconfigdata__linux.py": "path = '/home'\n",
    "text.txt": "not source\n",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Return where a made-up library is, and the data made of it."""
    folder = tmp_path_factory.mktemp("library")
    for name, text in LIBRARY.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1" if "latin-1" in text else "utf-8"))
    arguments = ["--name", "stdlib", "--licence", "none", "--unit", "piece", "--pieces", "330"]
    out = folder / "out"
    assert lm_files.main([*arguments, "--from", str(folder / "in"), "--out", str(out)]) == 0
    return folder / "in", out


def test_source_files_are_taken_whole_and_in_order(library):
    _, out = library
    rows = [row.split("\t") for row in (out / "text" / "files.tsv").read_text().splitlines()]
    assert [path for _, path, _ in rows] == sorted(
        [f"part{n}.py" for n in range(60)] + ["package/old.py", "package/unusual.py"]
    )
    for split in SPLITS:
        texts = [LIBRARY[path] for part, path, _ in rows if part == split]
        wanted = "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)
        assert texts
        assert (out / "text" / f"{split}.txt").read_bytes().decode() == wanted
    assert sum(record(out)["files"].values()) == len(rows) == 62


def test_a_file_keeps_its_split():
    assert [lm_texts.split_of(f"part{n}.py") for n in range(60)].count("train") > 45
    known = {"_sitebuiltins.py": "valid", "bisect.py": "test", "heapq.py": "train"}
    assert {path: lm_texts.split_of(path) for path in known} == known


def test_pieces_give_the_text_back(library, capfdbinary):
    _, out = library
    for split in SPLITS:
        assert decoded(out, split, capfdbinary) == (out / "text" / f"{split}.txt").read_bytes()
        assert record(out)["splits"][split]["unknown"] == 0
    assert record(out)["splits"]["test"]["words"] == len(
        (out / "text" / "test.txt").read_text().split()
    )


def test_pieces_are_what_fairseq_preprocess_makes_of_them(library, tmp_path):
    from fairseq import options
    from fairseq_cli import preprocess
    from sentencepiece import SentencePieceProcessor

    _, out = library
    model = SentencePieceProcessor(model_file=str(out / "pieces.model"))
    lines = (out / "text" / "train.txt").read_text().split("\n")[:-1]
    pieces = [" ".join(model.encode(line, out_type=str)) for line in lines]
    (tmp_path / "pieces").write_text("".join(f"{line}\n" for line in pieces))
    flags = ["--only-source", "--trainpref", str(tmp_path / "pieces")]
    flags += ["--destdir", str(tmp_path / "bin"), "--srcdict", str(out / "dict.txt")]
    preprocess.main(options.get_preprocessing_parser().parse_args(flags))
    for name in ("train.bin", "train.idx", "dict.txt"):
        assert (tmp_path / "bin" / name).read_bytes() == (out / name).read_bytes()


def test_too_many_pieces_are_refused(library, tmp_path, capsys):
    arguments = ["--name", "stdlib", "--licence", "none", "--unit", "piece", "--pieces", "9999"]
    arguments += ["--from", str(library[0]), "--out", str(tmp_path)]
    assert lm_files.main(arguments) == 1
    assert "no model of 9999 pieces (--pieces)" in capsys.readouterr().err


def test_a_directory_without_sources_is_refused(tmp_path):
    with pytest.raises(data_files.DataError, match="holds no Python files.*--from DIR"):
        lm_texts.take_sources(tmp_path, tmp_path)


def test_a_file_that_is_no_source_is_named(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'\n")
    with pytest.raises(data_files.DataError, match=r"bad\.py cannot be read as Python source"):
        lm_texts.take_sources(tmp_path, tmp_path)


# ---------------------------------------------------------------- tokens and text


def test_codecs_agree_with_the_data(library, tmp_path):
    made = [
        library[1],
        make(tmp_path / "word", "word", words()),
        make(tmp_path / "character", "character", {"all": ODD.encode()}),
        make(tmp_path / "byte", "byte", {"all": bytes(range(256)) * 2}),
    ]
    for out in made:
        codec = lm_tokens.Codec(out)
        text = (out / "text" / "train.txt").read_bytes()
        numbers = codec.encode(text)
        assert numbers == [number for item in items(out, "train") for number in item]
        if codec.unit == "word":
            text = b"\n".join(b" ".join(line.split()) for line in text.split(b"\n"))
        assert codec.decode(numbers) == text
