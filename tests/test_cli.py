"""fairseq's own commands with ``--user-dir`` on a checkout: train, resume, generate, translate."""

import re
import shutil

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

import fairseq_fwm  # noqa: F401
from translation_data import capitals

# One process for all: the corpus and the trained models are made once.
pytestmark = pytest.mark.xdist_group("cli")

MODEL = (
    "--arch fwm_transformer_tiny --encoder-layers 1 --decoder-layers 2 --encoder-embed-dim 16 "
    "--decoder-embed-dim 16 --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16 "
    "--encoder-attention-heads 2 --decoder-attention-heads 2 --share-all-embeddings"
)
TRAIN = (
    "-s en -t de --optimizer adam --lr 0.01 --criterion label_smoothed_cross_entropy "
    "--max-tokens 400 --num-workers 0 --seed 1 --log-format simple --log-interval 1 "
    "--required-batch-size-multiple 1 --dropout 0"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, run):
    return capitals(tmp_path_factory.mktemp("corpus"), run)


def train(run, root, data, save_dir, *flags, status=0):
    return run(
        *("-m", "fairseq_cli.train", data, "--user-dir", root / "fairseq_fwm"),
        *("--save-dir", save_dir, *MODEL.split(), *TRAIN.split(), *flags),
        status=status,
    )


VARIANTS = {
    "default": "",
    "everywhere": "--fwm-encoder-self delta --fwm-cross sum --fwm-feature-map favor",
}


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, data, run, root, tmp_path_factory):
    """A model trained for two epochs; the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    train(run, root, data, folder, "--max-epoch", 2, *VARIANTS[request.param].split())
    return folder


def losses(log):
    """Training loss by update."""
    found = re.findall(r"train_inner .* loss=([0-9.]+),.* num_updates=([0-9]+)", log)
    return {int(update): float(loss) for loss, update in found}


def test_a_resumed_run_goes_on_like_the_uninterrupted_one(
    trained, data, run, root, tmp_path, request
):
    """Without dropout, whose random numbers fairseq does not continue: to every printed digit."""
    flags = VARIANTS[request.node.callspec.params["trained"]].split()
    shutil.copy(trained / "checkpoint2.pt", tmp_path / "checkpoint_last.pt")
    resumed = losses(train(run, root, data, tmp_path, "--max-epoch", 3, *flags).stdout)
    whole = losses(train(run, root, data, tmp_path / "whole", "--max-epoch", 3, *flags).stdout)
    assert resumed and min(resumed) > 1 and max(resumed) == max(whole)
    for update, loss in resumed.items():
        assert loss == pytest.approx(whole[update], abs=1.5e-3)


def test_generate_and_score(trained, data, run, root):
    out = run(
        *("-m", "fairseq_cli.generate", data, "--user-dir", root / "fairseq_fwm"),
        *("--path", trained / "checkpoint_best.pt", "--beam", 3, "--scoring", "sacrebleu"),
        # Without it fairseq drops the sentences left over from batches of eight.
        *("--batch-size", 4, "--num-workers", 0, "--required-batch-size-multiple", 1),
    ).stdout
    assert len(re.findall(r"^H-\d+", out, re.M)) == 8
    assert re.search(r"^Generate test with beam=3: BLEU", out, re.M)


def test_interactive_translates_standard_input(trained, data, run, root, tmp_path):
    sentences = tmp_path / "input"
    sentences.write_text("a b c\nd e f g a\n")
    out = run(
        *("-m", "fairseq_cli.interactive", data, "--user-dir", root / "fairseq_fwm"),
        *("--path", trained / "checkpoint_best.pt", "--beam", 2, "--input", sentences),
        *("--buffer-size", 2),
    ).stdout
    assert len(re.findall(r"^H-\d+", out, re.M)) == 2


def test_from_pretrained_translates(trained, data):
    from fairseq_fwm.models.fwm_transformer import FWMTransformerModel

    hub = FWMTransformerModel.from_pretrained(str(trained), "checkpoint_best.pt", str(data))
    one, many = hub.translate("a b c"), hub.translate(["a b c", "d e f g a b"])
    assert isinstance(one, str) and many[0] == one


def test_wrong_flags_end_with_the_cause_and_lose_nothing(data, run, root, tmp_path):
    def refused(*flags, status=1):
        return train(run, root, data, tmp_path / "none", *flags, status=status).stderr

    assert "--fwm-attn-norm" in refused("--fwm-attn-norm", "half", status=2)
    assert "invalid choice: 'gated'" in refused("--fwm-decoder-self", "gated", status=2)
    error = refused("--fwm-impl", "cuda", "--max-update", 1)
    assert "no compiled cuda kernel" in error and "pip install" in error
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_data_is_named(run, root, tmp_path):
    error = train(run, root, tmp_path / "nowhere", tmp_path, status=1).stderr
    assert "nowhere" in error and "Error" in error


def test_print_alignment_is_refused(trained, data, run, root, request):
    if request.node.callspec.params["trained"] != "everywhere":
        pytest.skip("softmax cross-attention has alignments")
    error = run(
        *("-m", "fairseq_cli.generate", data, "--user-dir", root / "fairseq_fwm"),
        *("--path", trained / "checkpoint_best.pt", "--print-alignment"),
        status=1,
    ).stderr
    assert "train with --fwm-cross softmax" in error


def test_hydra_config_trains_and_loads(data, run, root, tmp_path):
    from fairseq import checkpoint_utils

    run(
        *("-m", "fairseq_cli.hydra_train", "--config-dir", root / "configs" / "translation"),
        *("--config-name", "debug", f"common.user_dir={root / 'fairseq_fwm'}"),
        *(f"task.data={data}", f"hydra.run.dir={tmp_path}", "optimization.max_update=2"),
        cwd=tmp_path,
    )
    [checkpoint] = tmp_path.rglob("checkpoint_last.pt")
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
    # The shape of the architecture, with the layers that the config names.
    assert model.encoder.layers[0].embed_dim == 128 and len(model.encoder.layers) == 2
