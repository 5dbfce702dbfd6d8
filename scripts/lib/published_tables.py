"""The published tables of arXiv 2102.11174, row by row: numbers, and the run of ours."""

from collections.abc import Sequence
from dataclasses import dataclass

TRANSLATION, LANGUAGE = "wmt14", "wikitext103"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: what names it, as the paper does.
        valid: published number on the validation set, as text; empty where there is none.
        test: the same on the test set.
        run: a VARIANT of train_wmt14.sh or a ROW of train_wikitext103.sh.
        memory: memory of Transformer-XL in the evaluation.
        segment: segment of Transformer-XL in the evaluation.
    """

    cells: tuple[str, ...]
    valid: str
    test: str
    run: str
    memory: int | None = None
    segment: int | None = None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: what it is of.
        header: names of the rows' cells.
        corpus: the corpus of its runs.
        method: how a language model is scored, of scripts/eval_lm.py.
        rows: in the paper's order.
    """

    title: str
    header: tuple[str, ...]
    corpus: str
    method: str
    rows: tuple[Row, ...]


def _rows(*rows: tuple[Sequence[str], str, str, str]) -> tuple[Row, ...]:
    return tuple(Row(tuple(cells), *rest) for cells, *rest in rows)


def _xl(segment: int, memory: int, state: str, valid: str, test: str) -> Row:
    run = "medium_transformer_xl"
    return Row(("Transformer-XL", f"90.9 M, {state}"), valid, test, run, memory, segment)


TABLES = {
    1: Table(
        "WMT14 English to German, BLEU",
        ("model", "key features"),
        TRANSLATION,
        "",
        _rows(
            (("Standard", ""), "26.6", "27.7", "softmax"),
            (("Linear", "64"), "25.5", "26.8", "linear"),
            (("Performer", "64"), "24.2", "24.4", "favor-m32"),
            (("Performer", "256"), "24.9", "25.3", "favor-m128"),
            (("Performer", "512"), "26.7", "27.7", "favor-m256"),
            (("DPFP", "256"), "26.2", "26.9", "dpfp-nu2"),
            (("DPFP", "512"), "26.2", "27.1", "dpfp-nu4"),
        ),
    ),
    2: Table(
        "WikiText-103, perplexity, context of a window",
        ("model", "rule", "size"),
        LANGUAGE,
        "sliding",
        _rows(
            (("Transformer", "", "small"), "33.0", "34.1", "small_transformer"),
            (("Linear Transformer", "sum", "small"), "37.1", "38.3", "small_linear"),
            (("Delta Network", "delta", "small"), "34.1", "35.5", "small_delta"),
            (("Performer", "sum", "small"), "39.0", "39.6", "small_performer_sum"),
            (("Performer", "delta", "small"), "36.1", "37.2", "small_performer_delta"),
            (("Transformer", "", "medium"), "27.9", "29.6", "medium_transformer"),
            (("Linear Transformer", "sum", "medium"), "31.1", "33.0", "medium_linear"),
            (("Delta Network", "delta", "medium"), "29.7", "31.5", "medium_delta"),
            (("Performer", "sum", "medium"), "32.2", "33.8", "medium_performer_sum"),
            (("Performer", "delta", "medium"), "30.0", "31.8", "medium_performer_delta"),
        ),
    ),
    3: Table(
        "WikiText-103, perplexity, Delta Network, medium",
        ("positions", "attention normalisation"),
        LANGUAGE,
        "sliding",
        _rows(
            (("yes", "yes"), "30.4", "32.1", "medium_delta_attn_norm"),
            (("no", "yes"), "29.2", "31.2", "medium_delta_no_positions_attn_norm"),
            (("yes", "no"), "29.7", "31.5", "medium_delta"),
            (("no", "no"), "28.1", "31.1", "medium_delta_no_positions"),
        ),
    ),
    4: Table(
        "WikiText-103, perplexity, medium, state carried along",
        ("model", "parameters, numbers kept"),
        LANGUAGE,
        "streaming",
        (
            *_rows(
                (("Linear Transformer", "89.8 M, 0.13 M"), "> 260", "> 260",
                 "medium_carry_over_linear"),
                (("Linear Transformer, not normalised", "89.8 M, 0.13 M"), "> 1600", "> 1600",
                 "medium_carry_over_linear_no_attn_norm"),
                (("Delta Network", "89.9 M, 0.13 M"), "27.8", "29.4", "medium_carry_over_delta"),
            ),
            _xl(1, 15, "0.13 M", "65.7", "65.5"),
            _xl(64, 64, "1.05 M", "29.3", "30.1"),
            _xl(128, 128, "2.10 M", "26.4", "27.4"),
            _xl(384, 384, "6.29 M", "24.6", "25.5"),
        ),
    ),
    5: Table(
        "WikiText-103, perplexity, small, more capacity than the window needs",
        ("model", "rule"),
        LANGUAGE,
        "sliding",
        _rows(
            (("Transformer", ""), "33.0", "34.1", "small_transformer"),
            (("Performer, m = 16", "sum"), "38.0", "38.8", "small_performer_m16_sum"),
            (("Performer, m = 16", "delta"), "36.0", "37.0", "small_performer_m16_delta"),
            (("DPFP, nu = 1", "sum"), "37.7", "38.8", "small_dpfp_sum"),
            (("DPFP, nu = 1", "delta"), "33.9", "35.0", "small_dpfp_delta"),
        ),
    ),
}  # fmt: skip

# Table 6: which m of FAVOR+ and nu of DPFP give how many key features to heads of 64.
HEAD_DIM = 64
CONVERSIONS = ((256, 128, 2), (384, 192, 3), (512, 256, 4))
