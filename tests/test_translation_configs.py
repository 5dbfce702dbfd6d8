"""Every row of the translation tables loads, trains, and equals its shell script's variant."""

import copy
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY

import fairseq_fwm  # noqa: F401
from fairseq_fwm.models.fwm_transformer import FWMTransformerConfig
from translation_data import capitals

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from lib.config_rows import load_row  # noqa: E402

FOLDER = ROOT / "configs" / "translation"
ROWS = sorted(path.stem for path in FOLDER.glob("*_*.yaml"))
SCRIPTS = {corpus: ROOT / "scripts" / f"train_{corpus}.sh" for corpus in ("wmt14", "iwslt14")}
GROUPS = (
    *("common", "task", "criterion", "dataset", "distributed_training", "optimizer"),
    *("lr_scheduler", "optimization", "checkpoint", "bmuf", "ema"),
)
PUBLISHED = {"softmax", "linear", "favor_m32", "favor_m128", "favor_m256", "dpfp_nu2", "dpfp_nu4"}
PLACES = {"data", "save_dir", "user_dir"}

pytestmark = [
    pytest.mark.xdist_group("translation configs"),
    # fairseq's way with hydra, and what it tells of hydra's future.
    pytest.mark.filterwarnings(r"ignore:\s*.*(ConfigStore schema|validated against).*"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*"),
]


@functools.cache
def load(row):
    return load_row(FOLDER, row, "common.user_dir=x", "task.data=x")


def script(corpus, *arguments, status=0):
    command = ["bash", str(SCRIPTS[corpus]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def settings_of_script(row, *flags):
    """Return what ``fairseq-train`` makes of a script's command."""
    corpus, variant = row.split("_", 1)
    printed = script(corpus, variant.replace("_", "-"), "--print", *flags)
    program, *arguments = shlex.split(printed)
    assert program == "fairseq-train"
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


def plain(group):
    group = (
        OmegaConf.to_container(group, enum_to_str=True) if OmegaConf.is_config(group) else group
    )
    return {name: value for name, value in group.items() if name not in PLACES}


def model_of(cfg):
    """Return all of a model's settings, with what its architecture adds."""
    model = copy.deepcopy(cfg.model)
    if OmegaConf.is_config(model):
        OmegaConf.set_struct(model, False)
        ARCH_CONFIG_REGISTRY[model._name](model)
        model = dict(model)
    else:
        model = vars(model)
    assert model["_name"].startswith("fwm_transformer_")
    known = {name: model[name] for name in model if name in FIELDS}
    return {**known, "arch": model["_name"]}


FIELDS = set(vars(FWMTransformerConfig())) | {
    f"{side}_{name}"
    for side in ("encoder", "decoder")
    for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads", "normalize_before")
}


@pytest.mark.parametrize("row", ROWS)
def test_yaml_and_script_ask_for_the_same(row):
    yaml = load(row)
    shell = settings_of_script(row)
    for name in GROUPS:
        assert plain(yaml[name]) == plain(shell[name]), name
    ours, theirs = model_of(yaml), model_of(shell)
    assert {name: theirs[name] for name in ours} == ours
    rest = set(theirs) - set(ours)
    defaults = vars(FWMTransformerConfig())
    assert {name: theirs[name] for name in rest} == {name: defaults[name] for name in rest}


def test_every_variant_has_its_row():
    for corpus in SCRIPTS:
        names = [line.split()[0] for line in script(corpus, "--list").splitlines()]
        assert {f"{corpus}_{name.replace('-', '_')}" for name in names} <= set(ROWS)
        assert len(names) == sum(row.startswith(f"{corpus}_") for row in ROWS) == 13


def test_data_are_where_the_prepare_scripts_put_them():
    for corpus, prepare in (("wmt14", "wmt14_ende"), ("iwslt14", "iwslt14_deen")):
        text = (ROOT / "scripts" / f"prepare_{prepare}.sh").read_text()
        assert f"--name {prepare}" in text
        assert f"'data/{prepare}'" in script(corpus, "softmax", "--print")


def test_gpus_share_the_micro_batches():
    cfg = settings_of_script("wmt14_linear", "--gpus", "8")
    assert cfg.optimization.update_freq == [6]
    assert cfg.distributed_training.distributed_world_size == 8
    assert "divide the batches of an update, 48" in script(
        "wmt14", "linear", "--gpus", "5", "--print", status=1
    )
    cpu = settings_of_script("iwslt14_linear", "--cpu")
    assert cpu.common.cpu and not cpu.common.fp16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which VARIANT? One of: softmax linear"),
        (("dpfp",), "unknown variant 'dpfp'. Valid ones: softmax linear"),
        (("linear", "--seed", "one"), "--seed must be a whole number, not 'one'"),
        (("linear", "--data", "/nowhere"), "/nowhere holds no dict.de.txt"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    assert message in script("iwslt14", *arguments, status=1)


# ---------------------------------------------------------------- two updates of every row


@pytest.fixture(scope="module")
def data(tmp_path_factory, run):
    return capitals(tmp_path_factory.mktemp("corpus"), run, train=40, valid=3)


SHAPE = {"layers": 1, "embed_dim": 8, "ffn_embed_dim": 8, "attention_heads": 2}
TINY = {
    **{f"model.{x}_{name}": n for x in ("encoder", "decoder") for name, n in SHAPE.items()},
    "common.cpu": True,
    "common.fp16": False,
    "common.no_progress_bar": True,
    "dataset.max_tokens": 64,
    "dataset.num_workers": 0,
    "dataset.required_batch_size_multiple": 1,
    "optimization.max_update": 2,
    "optimization.update_freq": [2],
    "task.eval_bleu_args": '{"beam": 2, "max_len_a": 0, "max_len_b": 4}',
    "checkpoint.no_epoch_checkpoints": True,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains(row, data, root, tmp_path):
    from fairseq.checkpoint_utils import save_checkpoint
    from fairseq_cli.train import main

    vars(save_checkpoint).pop("best", None)  # of the last row: fairseq keeps it on the function
    cfg = copy.deepcopy(load(row))
    places = {
        "common.user_dir": str(root / "fairseq_fwm"),
        "task.data": str(data),
        "checkpoint.save_dir": str(tmp_path),
    }
    for key, value in {**TINY, **places}.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    main(cfg)
    assert {path.name for path in tmp_path.glob("*.pt")} == {
        "checkpoint_best.pt",
        "checkpoint_last.pt",
    }


def test_a_script_trains_and_leaves_a_finished_run_alone(data, tmp_path, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shape = [
        word
        for side in ("encoder", "decoder")
        for name, size in SHAPE.items()
        for word in (f"--{side}-{name.replace('_', '-')}", str(size))
    ]
    small = "--max-update 2 --max-tokens 64 --num-workers 0 --required-batch-size-multiple 1"
    command = ["dpfp-nu1-delta", "--cpu", "--data", str(data), "--runs", str(tmp_path), *shape]
    command += [*small.split(), "--eval-bleu-args", TINY["task.eval_bleu_args"]]
    script("iwslt14", *command)
    run = tmp_path / "dpfp-nu1-delta-seed1"
    record = json.loads((run / "run.json").read_text())
    assert record["variant"] == "dpfp-nu1-delta" and record["finished"]
    assert (run / "checkpoint_best.pt").is_file()
    assert "training: already finished" in script("iwslt14", *command)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_it_is(row):
    head = (FOLDER / f"{row}.yaml").read_text().split("defaults:")[0]
    assert re.search(
        r"^# Published BLEU: (none\.|valid \d.*\(arXiv 2102\.11174, Table 1\)\.)$", head, re.M
    )
    corpus, _, variant = row.partition("_")
    is_published = corpus == "wmt14" and variant in PUBLISHED
    assert ("# Published BLEU: none." in head) != is_published
    assert "# Effective batch: at most" in head and "Updates: " in head
