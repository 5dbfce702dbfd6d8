"""Rows of ``configs/``, read as ``fairseq-hydra-train`` reads them."""

from pathlib import Path

from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf


def load_row(folder: Path, row: str, *overrides: str) -> DictConfig:
    """Return a row's whole configuration."""
    hydra_init(row)
    with initialize_config_dir(version_base="1.1", config_dir=str(folder)):
        cfg = compose(row, overrides=list(overrides))
    add_defaults(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    OmegaConf.set_struct(cfg, True)
    return cfg
