"""Rows of ``configs/``, read as ``fairseq-hydra-train`` reads them."""

import warnings
from pathlib import Path

from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf


def load_row(folder: Path, row: str, *overrides: str) -> DictConfig:
    """Return a row's whole configuration.

    Args:
        folder: of ``configs/``, such as ``configs/translation``.
        row: name of the file, without its ending.
        *overrides: as on the command line.
    """
    with warnings.catch_warnings():
        # fairseq's way with hydra, and what it tells of hydra's future.
        warnings.simplefilter("ignore")
        hydra_init(row)
        with initialize_config_dir(version_base="1.1", config_dir=str(folder.resolve())):
            cfg = compose(row, overrides=list(overrides))
    add_defaults(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(cfg, True)
    return cfg
