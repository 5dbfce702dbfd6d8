"""scripts/score.sh: the scores, the comparison, the table and the picture."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
pytest.importorskip("sacremoses", reason="sacremoses is not installed")

import mt_data as mt
from lib import mt_scoring, score, score_report
from lib.fairseq_jobs import fairseq_train

WORDS = ["Haus", "Baum", "Gasse", "Bio-Markt", "Ost-West-Dialog", "geht", "sieht", "alte", "und"]
SPEED = "INFO | Translated 9 sentences (99 tokens) in 2.0s (4.50 sentences/s, 1,049.50 tokens/s)\n"


def sentences(count=60):
    chooser = random.Random(7)
    return [
        " ".join(chooser.choices(WORDS, k=chooser.randint(2, 35))) + " ." for _ in range(count)
    ]


def spoil(lines, share):
    chooser = random.Random(5)
    return [
        " ".join(word if chooser.random() > share else "falsch" for word in line.split())
        for line in lines
    ]


def data(directory, references, **record):
    """A data directory without the binarised text itself."""
    (directory / "ref").mkdir(parents=True)
    (directory / "test.en-de.en.idx").touch()
    (directory / "ref" / "test.tok.de").write_text(mt.text(references))
    plain = mt.mt_text.detokenise(references, "de")
    (directory / "ref" / "test.detok.de").write_text(mt.text(plain))
    facts = {"form": "moses-bpe", "lowercase": False, "plain_reference": "raw"} | record
    (directory / "data.json").write_text(json.dumps(facts))
    return directory


def generated(path, hypotheses, references):
    """What fairseq-generate writes, longest sentences first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(references)), key=lambda n: -len(references[n]))
    lines = [f"T-{n}\t{references[n]}\nD-{n}\t-0.5\t{hypotheses[n]}\n" for n in order]
    path.write_text("".join(lines) + SPEED + "Generate test with beam=5: BLEU4 = 9.00, 9/9\n")
    return path


@pytest.fixture
def scored(tmp_path):
    """A good and a bad translation, compared."""
    references = sentences()
    folder = data(tmp_path / "data", references)
    bad = generated(tmp_path / "bad" / "gen.out", spoil(references, 0.4), references)
    good = generated(tmp_path / "good" / "gen.out", spoil(references, 0.1), references)
    out = tmp_path / "out"
    command = [f"good={good}", "--baseline", f"bad={bad}", "--data", folder, "--out", out]
    assert score.main([*map(str, command)]) == 0
    return tmp_path, json.loads((out / "score.json").read_text())


def test_scores_are_sacrebleus_own(scored):
    directory, result = scored
    bad, good = result["systems"]
    assert [bad["name"], good["name"]] == ["bad", "good"]
    folder = directory / "good" / "score-gen"
    command = ["sacrebleu", folder / "ref.detok.de", "-i", folder / "hyp.detok.de"]
    command += ["-m", "bleu", "chrf", "--chrf-word-order", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=mt.environment()
    )
    bleu, chrf = json.loads(done.stdout)
    assert good["sacrebleu"] == pytest.approx(bleu["score"], abs=0.06)
    assert good["signature"] == bleu["signature"]
    assert good["chrf++"] == pytest.approx(chrf["score"], abs=0.06)
    assert good["chrf++_signature"] == chrf["signature"]
    assert "nw:0" in good["chrf2_signature"]
    assert good["sentences_per_second"] == 4.5
    assert good["tokens_per_second"] == 1049.5
    assert good["sentences"] == 60


def test_the_comparison_finds_a_difference(scored):
    _, result = scored
    bad, good = result["systems"]
    assert "against" not in bad
    against = good["against"]
    assert against["baseline"] == "bad"
    assert against["difference"] == pytest.approx(good["sacrebleu"] - bad["sacrebleu"], abs=0.02)
    assert against["p"] < 0.01


def test_splitting_compounds_helps_where_one_is_half_right():
    reference, half = ["der alte Bio-Markt geht mit"], ["der alte Bio-Laden geht mit"]
    scores = mt_scoring.word_scores(half, reference)
    assert scores["compound_split_bleu"] > scores["tokenised_bleu"] > 0
    assert set(mt_scoring.word_scores(reference, reference).values()) == {100.0}


@pytest.mark.parametrize(
    ("line", "split"),
    [
        ("Bio-Markt", "Bio @-@ Markt"),
        ("Ost-West-Dialog .", "Ost @-@ West @-@ Dialog ."),
        ("10 - 20", "10 - 20"),
        ("- und - ,", "- und - ,"),
        ("Bio @-@ Markt", "Bio @-@ Markt"),
        ("kein", "kein"),
    ],
)
def test_compounds(line, split):
    assert mt_scoring.split_compounds(line) == split


def test_the_table_says_how_to_read_it(scored):
    directory, result = scored
    text = (directory / "out" / "score.md").read_text()
    _, good = result["systems"]
    row = next(line for line in text.splitlines() if line.startswith("| good"))
    assert f"| **{good['sacrebleu']:.2f}** | +" in row
    assert "(p = 0.00" in row
    assert "| 4.5 | 1,050 |" in row
    assert good["signature"] in text
    assert "Extras" in text
    assert "References: raw text" in text


def test_lengths_are_those_of_the_reference():
    lines = ["a " * 4, "b " * 10, "c " * 11, "d " * 70, ""]
    found = mt_scoring.bleu_by_length(lines, lines, lowercase=False)
    shape = [(one["shortest"], one["longest"], one["sentences"]) for one in found]
    assert shape == [(1, 10, 3), (11, 20, 1), (51, None, 1)]
    assert found[1]["bleu"] == pytest.approx(100)
    worse = mt_scoring.bleu_by_length(["a " * 4, "b " * 10, "x", "d " * 70, ""], lines, False)
    assert worse[1]["bleu"] < 1
    assert worse[2]["bleu"] == pytest.approx(100)


def test_the_picture_has_a_line_for_every_system(scored, monkeypatch):
    from matplotlib import pyplot

    directory, result = scored
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    score_report.draw(result, directory / "again.png")
    assert (directory / "again.png").read_bytes() == (
        directory / "out" / "length_bleu.png"
    ).read_bytes()
    (axis,) = drawn[0].axes
    for line, system in zip(axis.get_lines(), result["systems"], strict=True):
        assert list(line.get_ydata()) == [one["bleu"] for one in system["bleu_by_length"]]
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [text.split()[0] for text in shown] == ["bad", "good"]
    ticks = [int(re.search(r"n = (\d+)", t.get_text())[1]) for t in axis.get_xticklabels()]
    assert sum(ticks) == 60
    monkeypatch.undo()
    pyplot.close(drawn[0])


def test_case_is_ignored_where_the_data_is_lower_cased(tmp_path):
    references = sentences(10)
    folder = data(tmp_path / "data", references, lowercase=True)
    (folder / "ref" / "test.detok.de").write_text(
        mt.text(line.upper() for line in mt.mt_text.detokenise(references, "de"))
    )
    out = generated(tmp_path / "gen.out", references, references)
    command = [str(out), "--data", str(folder), "--out", str(tmp_path / "out")]
    assert score.main(command) == 0
    (system,) = json.loads((tmp_path / "out" / "score.json").read_text())["systems"]
    assert "case:lc" in system["signature"]
    assert "case:lc" in system["chrf2_signature"]
    assert system["sacrebleu"] == 100


def test_what_cannot_be_scored_is_refused(tmp_path, capsys):
    references = sentences(5)
    folder = data(tmp_path / "data", references)
    out = generated(tmp_path / "gen.out", references[:4], references[:4])

    def refused(*arguments):
        assert score.main([*map(str, arguments)]) == 1
        return capsys.readouterr().err

    assert "another text than" in refused(out, "--data", folder)
    assert "no binarised valid" in refused(out, "--data", folder, "--subset", "valid")
    assert "checkpoint_best.pt is not there: train first" in refused(tmp_path, "--data", folder)
    few = refused(tmp_path, "--data", folder, "--average", 3)
    assert "holds 0 epoch checkpoints" in few
    assert "not averaged" in few
    (tmp_path / "gen.out").write_text("T-0\ta\n")
    assert "incomplete" in refused(out, "--data", folder)


def test_without_matplotlib_the_table_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(score_report.importlib.util, "find_spec", lambda _: None)
    references = sentences(5)
    folder = data(tmp_path / "data", references)
    out = generated(tmp_path / "gen.out", references, references)
    assert score.main([str(out), "--data", str(folder), "--out", str(tmp_path / "o")]) == 1
    assert (tmp_path / "o" / "score.md").is_file()


def test_help_is_for_the_shell_script():
    done = subprocess.run(
        ["bash", str(mt.ROOT / "scripts" / "score.sh"), "--help"],
        capture_output=True, text=True, env=mt.environment(), check=True,
    )  # fmt: skip
    assert "usage: bash scripts/score.sh SYSTEM" in done.stdout
    assert "--baseline SYSTEM" in done.stdout
    assert "bash scripts/score.sh runs/delta --baseline" in done.stdout


@pytest.mark.filterwarnings("ignore")  # hydra's, of fairseq
@pytest.mark.parametrize(
    "form", [pytest.param("moses-bpe", marks=pytest.mark.slow), "sentencepiece"]
)
def test_a_model_is_averaged_run_and_scored(tmp_path, capsys, form):
    pytest.importorskip("babel", reason="babel is not installed")
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    pytest.importorskip("subword_nmt", reason="subword_nmt is not installed")
    source = mt.write_plain(tmp_path / "in")
    folder, run = tmp_path / "data", tmp_path / "run"
    facts = mt.facts("--from", source, "--out", folder, "--form", form)
    assert mt.mt_files.main(facts) == 0
    fairseq_train([
        str(folder), "-s", "en", "-t", "de", "--user-dir", str(mt.ROOT / "fairseq_fwm"),
        "--arch", "fwm_transformer_tiny", "--share-all-embeddings", "--cpu", "--num-workers", "0",
        "--optimizer", "adam", "--lr", "0.001", "--max-tokens", "2000", "--max-epoch", "2",
        "--encoder-layers", "1", "--decoder-layers", "1", "--disable-validation",
        "--log-format", "none", "--save-dir", str(run),
    ])  # fmt: skip
    capsys.readouterr()
    command = [str(run), "--data", str(folder), "--average", "2", "--beam", "2",
               "--", "--cpu", "--max-len-a", "0", "--max-len-b", "12"]  # fmt: skip
    assert score.main(command) == 0
    out = Path(run) / "score-average-2-test"
    (system,) = json.loads((out / "score.json").read_text())["systems"]
    assert system["averaged"] == ["checkpoint2.pt", "checkpoint1.pt"]
    assert system["fwm"]["fwm_decoder_self"] == "delta"
    assert system["sentences"] == 15
    assert system["peak_memory_mib"] > 50
    assert system["peak_gpu_memory_mib"] is None
    assert "--max-len-b 12" in system["generate"]
    assert mt.lines(out / "ref.detok.de") == mt.side("test", "de")
    assert "averaging the last 2" in capsys.readouterr().out
    assert score.main(command) == 0
    assert "translating: already in" in capsys.readouterr().out
