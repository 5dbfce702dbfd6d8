"""The folder in which a trained model leaves: weights, ``config.json``, dictionaries.

The weights have the names of fairseq's state dict. A parameter that the model has under several
names is stored once; ``config.json`` says what is tied to what.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.language_model import LanguageModel
from fairseq_fwm.nn.translation_model import TranslationModel
from fairseq_fwm.nn.vocabulary import Vocabulary

FORMAT, VERSION = "fairseq_fwm", 1
KINDS = {"language_model": LanguageModel, "translation_model": TranslationModel}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
Exported = LanguageModel | TranslationModel
# What reading a folder comes to that is not what was written; a ValueError is JSON's, too.
DAMAGED = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)


class ExportError(Exception):
    """A model cannot leave or come back; the message says why and what to do."""


def load_exported(folder: str | Path, device: str | torch.device = "cpu") -> Exported:
    """Load a model that ``scripts/export.py`` wrote. Needs torch and safetensors, not fairseq.

    Args:
        folder: with ``model.safetensors``, ``config.json`` and the dictionaries.
        device: where the model goes.

    Returns:
        A :class:`LanguageModel` or :class:`TranslationModel` in evaluation mode;
        ``model.vocabularies`` has a :class:`Vocabulary` under ``target`` and, of a translation
        model, ``source``.

    Raises:
        ExportError: if the folder is not complete, of another version, or damaged.
        ImportError: if safetensors is not installed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = read_config(folder)
        model = build(config)
        weights = load_file(folder / WEIGHTS)
        tie(model, config["tied"])
        model.load_state_dict(weights | {a: weights[b] for a, b in config["tied"].items()})
        model.vocabularies = {
            side: Vocabulary.from_file(folder / name)
            for side, name in config["dictionaries"].items()
        }
    except (*DAMAGED, SafetensorError) as error:
        raise ExportError(
            f"{folder} is damaged, or of another version of fairseq_fwm ({error}): export the "
            "checkpoint again"
        ) from error
    return model.to(device).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json``.

    Raises:
        ExportError: if the folder is no exported model, or not of this version.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ExportError(
                f"{folder} has no {name}: scripts/export.py writes such a folder from a checkpoint"
            )
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise ExportError(
            f"{folder / CONFIG} has format {config.get('format')!r}, version "
            f"{config.get('version')!r}; this is {FORMAT!r}, version {VERSION}: export the "
            "checkpoint again, or use the fairseq_fwm that wrote it"
        )
    return config


def build(config: dict[str, Any]) -> Exported:
    """Build the model of a ``config.json``, with random weights."""
    sides = [side for side in ("encoder", "decoder") if side in config]
    stacks = {side: StackConfig.from_json(config[side]) for side in sides}
    return KINDS[config["kind"]](**stacks, eos=config["eos"])


def tie(model: nn.Module, tied: dict[str, str]) -> None:
    """Make one parameter of two: the key becomes the value's."""
    for name, owner in tied.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, model.get_parameter(owner))


def find_tied(state: dict[str, Tensor]) -> dict[str, str]:
    """Return which names of a state dict share memory with an earlier one, and which that is."""
    owners: dict[tuple, str] = {}
    tied = {}
    for name, x in state.items():
        memory = (x.data_ptr(), x.shape, x.stride())
        if x.numel() and owners.setdefault(memory, name) != name:
            tied[name] = owners[memory]
    return tied


def save_exported(
    folder: str | Path, model: Exported, dictionaries: dict[str, str] | None = None
) -> None:
    """Write the folder that :func:`load_exported` reads; the dictionaries are there already.

    Args:
        folder: is made where it is missing.
        model: a :class:`LanguageModel` or :class:`TranslationModel`.
        dictionaries: the file names of the dictionaries under ``target`` and ``source``.

    Raises:
        ExportError: if the model is none of these two.
        ImportError: if safetensors is not installed.
    """
    from safetensors.torch import save_file

    kinds = [kind for kind, cls in KINDS.items() if isinstance(model, cls)]
    if not kinds:
        raise ExportError(
            f"a {type(model).__name__} has no place in such a folder: only a LanguageModel or a "
            "TranslationModel has (torch_twin.py makes one of a fairseq model); for other "
            "modules use torch.save(module.state_dict(), ...)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    tied = find_tied(state)
    weights = {name: x.contiguous() for name, x in state.items() if name not in tied}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kinds[0],
        "eos": model.eos,
        **{side: asdict(stack.cfg) for side, stack in model.named_children()},
        "dictionaries": dictionaries or {},
        "tied": tied,
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
