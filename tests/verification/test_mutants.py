"""A fixed sample of `make mutate`: the proof rejects every mutant of a correctly pruned model that computes something
else."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from proofs.mutants import KINDS, Mutant, mutate
from proofs.mutation import DIGITS, Subject, difference, sources, subject

from onnxprune.errors import OnnxPruneError

SMALL = ("hf_vit.ts", "hf_bert.ts", "squeezenet1_1.ts", "light_shufflenet", "hf_whisper_encoder.ts")
NO_VARIANT = ("digits_keras+tiny",)  # the model has no output column that could be scaled
FAST = [n for n in sources() if (n.startswith("case:") or n.split("+")[0] in DIGITS) and n not in NO_VARIANT]
CHOSEN = {**dict.fromkeys(FAST, 7), **dict.fromkeys(SMALL, 6)}


@functools.lru_cache(maxsize=4)
def made(name: str) -> Subject | None:
    """A subject; None for a variant that the model does not have, or a model that is compiled wrong."""
    original, tiny = sources()[name]()
    return None if original is None else subject(name, original, tiny=tiny)


def sample(name: str, item: Subject, count: int) -> list[Mutant]:
    """Mutants of different kinds; every subject begins with another kind."""
    kinds = list(KINDS)
    first = count * list(CHOSEN).index(name) % len(kinds)
    rng = np.random.default_rng(first)
    found = (mutate(item, k, rng) for k in (*kinds[first:], *kinds[:first]))
    return [m for m, _ in zip((m for m in found if m is not None), range(count), strict=False)]


@pytest.mark.parametrize("name", CHOSEN)
def test_no_mutant_is_accepted(name: str) -> None:
    item = made(name)
    assert item is not None, "the model has no such variant"
    assert item.accepts(item.copy()) == ""
    accepted = []
    for mutant in sample(name, item, CHOSEN[name]):
        change = item.change(mutant.proto if mutant.probe is None else mutant.probe)
        if change in ("other", "invalid") and not item.accepts(mutant.proto):
            accepted.append(f"{mutant.kind}: {mutant.what}")
    assert not accepted


def test_every_kind_changes_what_some_subject_computes() -> None:
    waiting = set(KINDS)
    for name in FAST:
        item = made(name)
        for kind in sorted(waiting) if item is not None else ():
            for seed in range(3):
                mutant = mutate(item, kind, np.random.default_rng(seed))
                if mutant and item.change(mutant.proto if mutant.probe is None else mutant.probe) == "other":
                    waiting.discard(kind)
                    break
    assert waiting == set()


def test_a_mutant_leaves_its_subject_alone() -> None:
    item = made("digits_cnn")
    assert item is not None
    before = item.proto.SerializeToString(deterministic=True)
    for kind in KINDS:
        mutate(item, kind, np.random.default_rng(0))
    assert item.proto.SerializeToString(deterministic=True) == before
    assert item.change(item.copy()) == "same"


def test_difference_is_relative_to_the_channel() -> None:
    wanted = np.array([[1.0, 1e-6], [2.0, 2e-6]], np.float32)
    got = wanted.copy()
    got[:, 1] *= 1.5
    assert difference(got, wanted) == pytest.approx(0.5)
    assert difference(wanted, wanted) == 0
    assert difference(got.astype(np.float64), wanted) == difference(got[:1], wanted) == np.inf
    assert difference(np.full(2, np.nan), np.full(2, np.nan)) == 0
    assert difference(np.array([np.nan, 1]), np.ones(2)) == difference(np.array([1]), np.array([2])) == np.inf


def test_a_refusal_is_an_error_of_ours() -> None:
    item = made("digits_cnn")
    assert item is not None
    broken = item.copy()
    del broken.graph.node[:]
    assert item.accepts(broken).startswith(OnnxPruneError.__name__)
