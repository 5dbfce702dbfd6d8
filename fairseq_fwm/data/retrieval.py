"""Sequences of keys and values, and questions about them (arXiv 2102.11174, Sec. 6.1)."""

from typing import NamedTuple

import numpy as np


class Question(NamedTuple):
    """Sequences and what is asked about each: arrays of integers.

    Attributes:
        keys: ``(B, T)``, from 0 to S - 1.
        values: ``(B, T)``, from 0 to S - 1.
        queries: ``(B, Q)``, keys that occur.
        targets: ``(B, Q)``, the value that came last with each.
    """

    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    targets: np.ndarray


def draw_sequences(
    rng: np.random.Generator, size: int, n_keys: int, length: int, replace: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys and values ``(size, length)``.

    Args:
        rng: where the randomness comes from.
        size: number of sequences.
        n_keys: S, how many keys there are, and how many values.
        length: T; without replacement T = S.
        replace: draw with replacement (setting 2), or permute all of them (setting 1).

    Raises:
        ValueError: if the length is not S without replacement.
    """
    if replace:
        keys, values = rng.integers(n_keys, size=(2, size, length))
        return keys, values
    if length != n_keys:
        raise ValueError(
            f"without replacement every key occurs once: the length must be {n_keys}, not {length}"
        )
    everything = np.broadcast_to(np.arange(n_keys), (size, n_keys))
    return rng.permuted(everything, axis=1), rng.permuted(everything, axis=1)


def draw_training(
    rng: np.random.Generator, size: int, n_keys: int, length: int, replace: bool
) -> Question:
    """Draw sequences and ask each for the key at a random position."""
    keys, values = draw_sequences(rng, size, n_keys, length, replace)
    queries = np.take_along_axis(keys, rng.integers(length, size=(size, 1)), axis=1)
    return Question(keys, values, queries, last_values(keys, values, queries))


def draw_evaluation(
    rng: np.random.Generator, n_keys: int, length: int, replace: bool, most: int | None = None
) -> Question:
    """Draw one sequence and ask for every key in it, or for the ``most`` smallest."""
    keys, values = draw_sequences(rng, 1, n_keys, length, replace)
    queries = np.unique(keys)[None, :most]
    return Question(keys, values, queries, last_values(keys, values, queries))


def last_values(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the value at the last position of each query's key, ``(B, Q)``."""
    found = keys[:, None, ::-1] == queries[:, :, None]
    last = keys.shape[1] - 1 - found.argmax(-1)
    return np.take_along_axis(values, last, axis=1)
