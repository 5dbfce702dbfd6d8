#!/usr/bin/env python3
"""Write a trained model into a folder that needs no fairseq to be read.

    python scripts/export.py CHECKPOINT [--data DIR] --out DIR

DIR gets model.safetensors, config.json and the dictionaries;
`fairseq_fwm.nn.load_exported(DIR)` gives the model back, with torch and safetensors alone. Before
anything counts as exported, the folder is read back and must give the checkpoint's
log-probabilities. See docs/export.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TOLERANCE = 1e-4
"""Of log-probabilities: far above rounding, far below any mistake in a layer."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="fairseq checkpoint of a translation or language model")
    add("--data", type=Path, metavar="DIR",
        help="where the dictionaries are (default: where they were in training)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def load(checkpoint: Path, data: Path | None) -> tuple[Any, Any]:
    """Return model and task of a checkpoint.

    Raises:
        ExportError: if there is no such file, or no dictionary.
    """
    from fairseq import checkpoint_utils

    from fairseq_fwm.nn import ExportError

    if not checkpoint.is_file():
        raise ExportError(f"there is no checkpoint {checkpoint}")
    overrides = {} if data is None else {"data": str(data)}
    try:
        (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], overrides
        )
    except FileNotFoundError as error:
        raise ExportError(
            f"{error}: say with --data where the dictionaries of the training are"
        ) from error
    return model.eval(), task


def save_dictionaries(folder: Path, task: Any) -> dict[str, str]:
    """Write fairseq's dictionary files; return their names by side.

    Raises:
        ExportError: if a dictionary does not come back as it was.
    """
    from fairseq_fwm.nn import ExportError
    from fairseq_fwm.nn.vocabulary import Vocabulary

    if getattr(task.cfg, "source_lang", None) is None:
        names, kept = {"target": "dict.txt"}, {"target": task.target_dictionary}
    else:
        sides = {"source": task.cfg.source_lang, "target": task.cfg.target_lang}
        names = {side: f"dict.{language}.txt" for side, language in sides.items()}
        kept = {"source": task.source_dictionary, "target": task.target_dictionary}
    for side, dictionary in kept.items():
        path = folder / names[side]
        dictionary.save(str(path))
        if Vocabulary.from_file(path).symbols != dictionary.symbols:
            raise ExportError(
                f"the dictionary of the {side} side has special symbols of its own, which its "
                "file does not keep: such a model cannot be exported"
            )
    return names


def export(args: argparse.Namespace) -> str:
    """Write the folder; return what to say about it.

    Raises:
        ExportError: if the model cannot be exported.
    """
    import fairseq_fwm  # noqa: F401  (registers models and tasks)
    from fairseq_fwm.nn import ExportError, load_exported, save_exported
    from fairseq_fwm.torch_twin import difference, torch_twin

    model, task = load(args.checkpoint, args.data)
    twin = torch_twin(model)
    args.out.mkdir(parents=True, exist_ok=True)
    save_exported(args.out, twin, save_dictionaries(args.out, task))
    found = difference(model, load_exported(args.out))
    if not found <= TOLERANCE:
        raise ExportError(
            f"the exported model's log-probabilities differ by {found:.1e}: this is a mistake in "
            "fairseq_fwm, please report it with the flags of the training"
        )
    size = (args.out / "model.safetensors").stat().st_size / 1e6
    return (
        f"{args.out}: {type(twin).__name__}, {size:.1f} MB; log-probabilities differ from the "
        f"checkpoint's by at most {found:.1e}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    try:
        from fairseq_fwm.nn import ExportError

        print(export(args))
    except ImportError as error:
        print(
            f"error: {error}: pip install safetensors, and fairseq as docs/install.md says",
            file=sys.stderr,
        )
        return 1
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
