"""Associative retrieval: questions, the model's arithmetic, stopping, and whole trainings."""

import argparse
import csv
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.optim.adam import FairseqAdam

from fairseq_fwm.criterions.squared_error import SquaredErrorCriterion
from fairseq_fwm.data.retrieval import draw_evaluation, draw_training
from fairseq_fwm.feature_maps import build_feature_map
from fairseq_fwm.models.associative_memory import AssociativeMemory
from fairseq_fwm.optim.until_solved import UntilSolved, UntilSolvedConfig
from fairseq_fwm.tasks.associative_retrieval import (
    AssociativeRetrievalConfig,
    AssociativeRetrievalTask,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import retrieval  # noqa: E402
from lib.retrieval_cells import (  # noqa: E402
    PRESETS,
    Cell,
    CellError,
    Variant,
    parse_name,
    read_curve,
)

# One process for all: what is trained is trained once.
pytestmark = pytest.mark.xdist_group("retrieval")

# ---- questions


@pytest.mark.parametrize("replace", [False, True])
def test_targets_are_the_last_values_of_their_keys(replace):
    length = 14 if replace else 7
    drawn = draw_training(np.random.default_rng(0), 50, 7, length, replace)
    assert drawn.keys.shape == drawn.values.shape == (50, length)
    for keys, values, [query], [target] in zip(*map(np.ndarray.tolist, drawn), strict=True):
        assert target == dict(zip(keys, values, strict=True))[query]
        if not replace:
            assert sorted(keys) == sorted(values) == list(range(7))
    if replace:
        assert len({tuple(row) for row in drawn.keys.tolist()}) == 50
        assert any(len(set(row)) < 7 for row in drawn.keys.tolist())


def test_evaluation_asks_for_every_key_once():
    drawn = draw_evaluation(np.random.default_rng(0), 30, 30, True)
    last = dict(zip(drawn.keys[0].tolist(), drawn.values[0].tolist(), strict=True))
    assert dict(zip(drawn.queries[0].tolist(), drawn.targets[0].tolist(), strict=True)) == last
    assert drawn.queries[0].tolist() == sorted(last)
    fewer = draw_evaluation(np.random.default_rng(0), 30, 30, True, most=4)
    assert fewer.queries[0].tolist() == sorted(last)[:4]


def test_sequences_without_replacement_have_one_length():
    with pytest.raises(ValueError, match="the length must be 7, not 8"):
        draw_training(np.random.default_rng(0), 1, 7, 8, False)


def task(**flags):
    given = {"n_keys": 12, "batch_size": 4, "seed": 1} | flags
    return AssociativeRetrievalTask(AssociativeRetrievalConfig(**given))


def test_batches_repeat_with_seed_and_epoch_and_with_nothing_else():
    def batch(epoch=1, first=0, split="train", **flags):
        made = task(**flags)
        made.load_dataset(split)
        made.datasets[split].set_epoch(epoch)
        return made.datasets[split].collater([first])["net_input"]["values"].tolist()

    assert batch() == batch()
    others = batch(epoch=2), batch(first=4), batch(seed=2), batch(split="valid")
    assert all(other != batch() for other in others)


def test_an_epoch_is_the_updates_between_two_evaluations():
    made = task(eval_every=10)
    made.load_dataset("train")
    batches = made.get_batch_iterator(made.datasets["train"], max_sentences=4)
    assert len(batches) == 10
    sample = next(batches.next_epoch_itr())
    assert sample["target"].shape == (4, 1) and sample["net_input"]["keys"].shape == (4, 12)
    made.load_dataset("valid")
    made.begin_valid_epoch(3, None)
    assert made.datasets["valid"].epoch == 3
    assert len(made.get_batch_iterator(made.datasets["valid"], max_sentences=4)) == 20


@pytest.mark.parametrize(
    ("flags", "length", "queries"),
    [
        ({"replace": True}, 24, None),
        ({"replace": True, "eval_length": 30}, 30, None),
        ({"replace": True, "as_published": True}, 12, 200),
        ({}, 12, None),
    ],
)
def test_evaluated_sequences(flags, length, queries):
    made = task(**flags)
    made.load_dataset("valid")
    assert made.datasets["valid"].collater([0])["net_input"]["keys"].shape == (1, length)
    assert made.eval_queries == queries


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"n_keys": 0}, "--n-keys must be at least 1, found 0"),
        ({"batch_size": None}, "pass --batch-size"),
        ({"eval_length": 5}, "--eval-length is for --replace"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(ValueError, match=message):
        task(**flags)


# ---- the model


def published(model, keys, values, queries):
    """Answers by the published arithmetic: concatenated inputs, one time step after the other."""
    S = model.n_keys
    one_hot = torch.nn.functional.one_hot(values, S).to(model.key.weight)
    x = torch.cat((one_hot, model.embed_keys(keys)), -1)
    q, k = model.query(model.embed_keys(queries)), model.key(x)
    beta = model.write_strength(x).sigmoid()
    if model.rule == "softmax":
        return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ one_hot
    q, k = model.phi(q), model.phi(k)
    if model.rule == "sum":
        W, Z = one_hot.transpose(1, 2) @ k, k.sum(1, keepdim=True)
        return q @ W.transpose(1, 2) / ((q * Z).sum(-1, keepdim=True) + 1e-6)
    W = q.new_zeros(len(q), S, k.shape[-1])
    if model.rule == "delta":
        k = k / k.sum(-1, keepdim=True)
        q = q / (q.sum(-1, keepdim=True) + 1e-6)
    for t in range(keys.shape[1]):
        k_t, v_t, beta_t = k[:, t], one_hot[:, t], beta[:, t]
        old = torch.einsum("nvk,nk->nv", W, k_t)
        W = W - torch.einsum("nv,nk->nvk", old, k_t)
        W = W + torch.einsum("nv,nk->nvk", beta_t * v_t + (1 - beta_t) * old, k_t)
        if model.rule == "fwm" and t > 0:
            W = W / (torch.relu(W.norm(dim=(1, 2), keepdim=True) - 1) + 1)
    y = q @ W.transpose(1, 2)
    return torch.nn.functional.layer_norm(y, (S,)) if model.rule == "fwm" else y


MODELS = [
    ("softmax", None, {}),
    ("sum", "elu", {}),
    ("sum", "dpfp", {"nu": 3}),
    ("sum", "favor", {"m": 16, "variant": "retrieval"}),
    ("delta", "elu", {}),
    ("delta", "dpfp", {"nu": 2}),
    ("delta", "favor", {"m": 16, "variant": "retrieval"}),
    ("fwm", "tanh", {}),
    ("fwm", "dpfp", {"nu": 1}),
]


@pytest.mark.parametrize(("rule", "name", "options"), MODELS)
def test_answers_are_those_of_the_published_arithmetic(rule, name, options):
    phi = name and build_feature_map(name, 8, **options)
    model = AssociativeMemory(6, 8, rule, phi, eps=0.0).double()
    drawn = draw_training(np.random.default_rng(0), 5, 6, 12, True)
    keys, values, queries, _ = map(torch.from_numpy, drawn)
    queries = torch.cat((queries, queries.flip(0)), 1)
    found, wanted = model(keys, values, queries), published(model, keys, values, queries)
    assert found.shape == (5, 2, 6)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    weights = torch.randn_like(found)
    of = [
        torch.autograd.grad((y * weights).sum(), model.parameters(), allow_unused=True)
        for y in (found, wanted)
    ]
    for ours, theirs in zip(*of, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_favor_is_drawn_anew_for_every_evaluation_only_as_published():
    drawn = draw_evaluation(np.random.default_rng(0), 6, 6, False)
    given = [torch.from_numpy(x) for x in drawn[:3]]
    for redraw in (False, True):
        phi = build_feature_map("favor", 8, m=4)
        model = AssociativeMemory(6, 8, "sum", phi, redraw=redraw).eval()
        assert torch.equal(model(*given), model(*given)) != redraw


def test_features_of_both_signs_are_refused():
    cfg = argparse.Namespace(fwm_rule="ours", fwm_feature_map="tanh")
    with pytest.raises(ValueError, match="--fwm-rule delta with --fwm-feature-map tanh: "):
        AssociativeMemory.build_model(cfg, task())


# ---- the criterion and the end of training


class Constant(torch.nn.Module):
    """Answers that do not depend on the question."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, **net_input):
        return self.answers


def test_squared_error():
    targets = torch.tensor([[1, 0, 2, 2, 0]])
    sample = {"net_input": {}, "target": targets, "ntokens": 1, "nsentences": 1}
    zero = Constant(torch.zeros(1, 5, 3))
    loss, size, log = SquaredErrorCriterion(task())(zero, sample)
    assert (float(loss), size, log["sample_size"]) == (2.5, 5, 5)
    answers = torch.randn(1, 5, 3)
    each = 0.5 * (answers - torch.nn.functional.one_hot(targets, 3)).square().sum(-1)[0]
    model = Constant(answers).eval()
    loss, size, _ = SquaredErrorCriterion(task())(model, sample)
    torch.testing.assert_close(loss / size, each.mean())
    published = SquaredErrorCriterion(task(as_published=True))  # chunks of 4 and 1
    loss, size, log = published(model, sample)
    torch.testing.assert_close(loss / size, (each[:4].mean() + each[4]) / 2)
    loss, size, _ = published(model.train(), sample)
    torch.testing.assert_close(loss / size, each.mean())


def until_solved(tmp_path, **flags):
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = FairseqAdam(
        SimpleNamespace(lr=[0.1], adam_betas="(0.9, 0.999)", adam_eps=1e-8, weight_decay=0.0,
                        tpu=False, use_old_adam=True, fp16_adam_stats=False),
        parameters,
    )  # fmt: skip
    cfg = UntilSolvedConfig(lr=[0.1], stop_min_lr=0.0, eval_log=str(tmp_path / "log"), **flags)
    return UntilSolved(cfg, optimizer)


@pytest.mark.parametrize(
    ("losses", "ends_after"),
    [
        ([0.5, 0.4, 1e-3], 3),
        ([0.5] * 12, 12),
        ([math.nan] * 11, 11),
        ([0.5, *[0.5] * 10, 0.4, *[0.4] * 11], 23),
        ([math.nan, 0.5, 0.4, 0.3], None),
    ],
)
def test_training_ends_when_solved_or_stuck(tmp_path, losses, ends_after):
    schedule = until_solved(tmp_path)
    for count, loss in enumerate(losses, 1):
        schedule.step_begin_epoch(count)
        schedule.step_update(100 * count)
        assert schedule.optimizer.get_lr() == 0.1
        schedule.step(count, loss)
        ended = schedule.step_update(100 * count) == 0
        assert ended == (count == ends_after)
    rows = list(csv.reader((tmp_path / "log").open()))
    assert rows[0] == ["step", "eval-loss"] and len(rows) == 1 + len(losses)
    assert rows[-1][0] == str(100 * len(losses))


def test_a_resumed_training_counts_on(tmp_path):
    first, second = until_solved(tmp_path), until_solved(tmp_path)
    for loss in [0.5, *[0.6] * 10]:
        first.step(1, loss)
    second.load_state_dict(first.state_dict())
    second.step(2, 0.6)
    assert second.ended and not first.ended


def test_the_rate_falls_where_it_is_to(tmp_path):
    schedule = until_solved(tmp_path, anneal=True, max_update=100)
    found = [schedule.step_begin_epoch(1)]
    for update in range(1, 101):
        found.append(schedule.step_update(update))
        if update in (40, 80):
            assert schedule.step_begin_epoch(update) == found[-1]
    assert found == sorted(found, reverse=True)
    assert found[0] == 0.1 and found[100] == pytest.approx(0.001)
    assert found[50] == pytest.approx(0.0505)
    with pytest.raises(ValueError, match="needs an end: pass --max-update"):
        until_solved(tmp_path, anneal=True, max_update=0)


def test_a_schedule_that_cannot_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass --stop-min-lr 0"):
        UntilSolved(UntilSolvedConfig(lr=[0.1], stop_min_lr=-1.0), None)


# ---- the script


@pytest.mark.parametrize("preset", PRESETS)
def test_names_of_the_published_logs(preset):
    for cell in PRESETS[preset]:
        assert parse_name(cell.name) == cell
    assert len({cell.name for cell in PRESETS[preset]}) == len(PRESETS[preset])
    assert sum(map(len, PRESETS.values())) == 320


def test_names_as_they_were_published(shared):
    with (shared / "data/synthetic_reference/eval_loss.csv").open() as table:
        runs = {tuple(row.values())[:6] for row in csv.DictReader(table)}
    names = {
        f"d{hidden}_{attention}_{rule}_AssocSeq{length}N{n}R{replace}"
        for attention, rule, hidden, length, n, replace in runs
    }
    assert {cell.name for preset in PRESETS.values() for cell in preset} == names


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "say --attn_name, or --preset for a grid"),
        ("--attn_name dpfp", "--attn_name dpfp needs --attn_arg, its nu"),
        ("--attn_name favor", "--attn_name favor needs --attn_arg, its m"),
        ("--attn_name dpfp --attn_arg 128", "DPFP's nu is at most 2 * hidden_size - 1 = 127"),
        ("--attn_name linear --attn_arg 2", "--attn_name linear has no --attn_arg"),
        ("--attn_name tanh", "use --update_rule fwm"),
        ("--attn_name softmax --update_rule ours", "softmax has no memory to update"),
        ("--attn_name linear --begin 40 --end 20", "no S between --begin 40 and --end 20"),
        ("--attn_name linear --step 0", "no S between"),
        ("--attn_name linear --quick", "leave --attn_name out"),
        ("--preset setting1 --attn_name linear", "leave --attn_name out"),
    ],
)
def test_command_lines_that_make_no_sense(flags, message, capsys):
    with pytest.raises(SystemExit):
        retrieval.main(flags.split())
    assert message in capsys.readouterr().err


def test_a_log_with_another_name_is_refused():
    with pytest.raises(CellError, match="'d64.csv' is not the name of a log"):
        parse_name("d64.csv")


def test_commands_of_the_published_experiments(capsys):
    flags = "--attn_name tanh --update_rule fwm --replace --begin 20 --end 40"
    assert retrieval.main([*flags.split(), "--dry-run", "--as-published"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    assert "--lr 0.0001 " in commands[0] and "--batch-size 128 " in commands[0]
    assert "d64_tanh_fwm_AssocSeq40N20R1.csv" in commands[0]
    assert retrieval.main(["--quick", "--dry-run"]) == 0
    quick = capsys.readouterr().out.splitlines()
    assert 20 <= len(quick) <= 40 and sum(" --replace " in line for line in quick) >= 8
    assert Cell(Variant("dpfp", 1, "ours"), 20, True).name == "d64_dpfp1_ours_AssocSeq40N20R1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run):
    """Logs of one cell that is solved and one that is not, and what the script printed."""
    folder = tmp_path_factory.mktemp("logs")
    script = [ROOT / "scripts/retrieval.py", "--attn_name", "dpfp", "--attn_arg", "1",
              "--replace", "--end", "20", "--log_dir", folder, "--as-published"]  # fmt: skip
    solved = run(*script, "--update_rule", "delta")
    failed = run(*script, "--update_rule", "sum")
    return folder, script, solved.stdout + failed.stdout


def test_delta_solves_what_sum_does_not(trained):
    folder, _, said = trained
    solved = read_curve(folder / "d64_dpfp1_ours_AssocSeq40N20R1.csv")
    failed = read_curve(folder / "d64_dpfp1_sum_AssocSeq40N20R1.csv")
    assert [step for step, _ in solved] == list(range(100, 100 * len(solved) + 1, 100))
    assert solved[-1][1] <= 1e-3 < solved[-2][1]
    assert failed[-1][1] > 0.05 and len(failed) >= 12
    assert min(range(len(failed)), key=lambda i: failed[i][1]) == len(failed) - 12
    assert "d64_dpfp1_ours_AssocSeq40N20R1: loss" in said
    assert not list(folder.glob("*.part")) and not list(folder.glob("*.output"))


def test_what_is_there_is_not_trained_again(trained, run):
    folder, script, _ = trained
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run(*script, "--update_rule", "ours")
    assert "1 of 1 cells are there already" in done.stdout
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_figures_and_comparison(trained, run, tmp_path, shared):
    folder, *_ = trained
    published = shared / "data/synthetic_reference/eval_loss.csv"
    page = tmp_path / "page.md"
    script = ROOT / "scripts/results_retrieval.py"
    done = run(script, "--logs", folder, "--published", published, "--out", page)
    assert "Of the 98 cells that have to agree, 2 were run; 2 are solved or failed" in done.stdout
    assert "and 2 of these agree" in done.stdout
    for name in ("setting2.png", "setting2.pdf", "setting2-curves.png", "final_losses.csv"):
        assert (tmp_path / "page" / name).stat().st_size > 100
    run(ROOT / "scripts/plot_retrieval.py", "--logs", folder, "--out", tmp_path / "alone")
    assert (tmp_path / "alone/setting2.png").exists()


@pytest.mark.parametrize("script", ["plot_retrieval.py", "results_retrieval.py"])
def test_logs_that_are_not_there(script, run, tmp_path):
    published = ["--published", tmp_path] if script.startswith("results") else []
    out = ["--out", tmp_path / "out"]
    done = run(ROOT / "scripts" / script, "--logs", tmp_path, *published, *out, status=1)
    assert f"no logs in {tmp_path}: run scripts/retrieval.py" in done.stderr


def test_comparison_of_classes():
    from results_retrieval import Comparison, class_of, ranges

    cell = Cell(Variant("linear"), 100, False)
    assert [class_of(x) for x in (1e-3, 2e-3, 0.02, 0.03, math.nan)] == [
        "solved", "between", "between", "failed", "failed",
    ]  # fmt: skip
    assert Comparison(cell, 0.17, {1: 0.12}).agrees
    assert not Comparison(cell, 0.17, {1: 0.11}).agrees
    assert not Comparison(cell, 0.17, {1: 9e-4}).agrees
    assert Comparison(cell, 9e-4, {1: 0.1, 2: 1e-4}).agrees
    assert (
        Comparison(cell, 0.17, {1: 0.01}).between and not Comparison(cell, 0.17, {1: 0.1}).between
    )
    assert not Comparison(Cell(Variant("linear"), 320, False), 0.4, {}).judged
    assert ranges([20, 40, 60, 100]) == "20-60, 100"
