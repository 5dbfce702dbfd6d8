#!/usr/bin/env python3
"""Turn a checkpoint of fairseq's transformer into one of fwm_transformer, softmax at every site.

    python scripts/import_stock.py CHECKPOINT --out FILE

With softmax everywhere fwm_transformer is fairseq's transformer, module for module, so that
nothing but the names in the configuration changes: outputs stay the same to the last bit, and the
optimizer's state is kept. A transformer_lm becomes an fwm_transformer_lm. FILE works with
fairseq-generate and fairseq-train --restore-file (with --user-dir fairseq_fwm), and with
scripts/export.py. See docs/export.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.new_checkpoint import ImportingError, read_file, run, save_whole  # noqa: E402

SITES = {
    "fwm_transformer": ("encoder_self", "decoder_self", "cross"),
    "fwm_transformer_lm": ("decoder_self",),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="of fairseq's transformer or transformer_lm")
    add("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    return parser


def our_name(architecture: str | None) -> str:
    """Return our model's name for the name of an architecture of fairseq's.

    Raises:
        ImportingError: if it is another model's.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.models.transformer import TransformerModel
    from fairseq.models.transformer_lm import TransformerLanguageModel

    ours = {TransformerModel: "fwm_transformer", TransformerLanguageModel: "fwm_transformer_lm"}
    found = ours.get(ARCH_MODEL_REGISTRY.get(architecture))
    if found is None:
        raise ImportingError(
            f"architecture {architecture!r}: only fairseq's transformer and transformer_lm, in "
            "any of their shapes, are the same model as ours"
        )
    return found


def rename(settings: Any) -> str:
    """Let a model's settings, a dict or a Namespace, name our model; return the name."""
    fields = settings if isinstance(settings, dict) else vars(settings)
    name = our_name(fields.get("_name") or fields.get("arch"))
    fields["arch"] = name
    if "_name" in fields:
        fields["_name"] = name
    fields.update({f"fwm_{site}": "softmax" for site in SITES[name]})
    return name


def convert(args: argparse.Namespace) -> str:
    """Write the checkpoint; return what to say about it.

    Raises:
        ImportingError: if the file is no checkpoint of such a model.
    """
    state = read_file(args.checkpoint)
    if not isinstance(state, dict) or "model" not in state:
        raise ImportingError(f"{args.checkpoint} is not a fairseq checkpoint: no entry 'model'")
    # Old checkpoints have flat args, newer ones a structured cfg.
    old = state.get("args")
    settings = old if old is not None else (state.get("cfg") or {}).get("model")
    if settings is None:
        raise ImportingError(f"{args.checkpoint} does not say what model it is: no args, no cfg")
    name = rename(settings)
    save_whole(state, args.out)
    return f"{args.out}: {name}, softmax at every site"


if __name__ == "__main__":
    sys.exit(run(convert, make_parser().parse_args()))
