"""Recognition of text by CTC: accuracy of characters and words, divergence of frames without targets.

The class of every frame is the one of the largest score; repeated classes count once, and the blank not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxprune._utils.files.input_files import read_text
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks._jackknife import of_sums
from onnxprune.execution.tasks.metrics import Metric, MetricValue, Outcome, check_finite, log_probabilities, numbers
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Tensor, Watch
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

_ENOUGH = 10  # texts from which a figure is judged implausible
_MOST_BYTES = 16 * 2**20  # of a file with an alphabet

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Frames:
    """Output of a recognizer: scores of classes for every frame.

    Attributes:
        batch_axis: Axis of the samples, 0 or 1; the frames are on the other one, the classes on the last.
        blank: Class of no character.
        alphabet: Text of every class; None: unknown.
    """

    batch_axis: int
    blank: int
    alphabet: tuple[str, ...] | None = None

    def scores(self, output: Array, count: int) -> Array:
        """Return scores [n, frames, classes].

        Raises:
            OnnxPruneError: The output has another shape or is not finite.
        """
        values = np.asarray(output, np.float64)
        if values.ndim != 3:
            raise OnnxPruneError(f"the output {list(values.shape)} is not [n, frames, classes]")
        values = np.moveaxis(values, self.batch_axis, 0)[:count]
        check_finite(values)
        return values

    def decode(self, scores: Array) -> list[Indices]:
        """Return the classes of each sample, without repetitions, blanks, and spaces at either end."""
        best = scores.argmax(-1)
        new = np.ones(best.shape, np.bool_)
        new[:, 1:] = best[:, 1:] != best[:, :-1]
        new &= best != self.blank % scores.shape[-1]
        return [self._trimmed(tuple(row[mask].tolist())) for row, mask in zip(best, new, strict=True)]

    def _trimmed(self, indices: Indices) -> Indices:
        """Return classes without spaces at either end, which recognizers read in the margins of an image."""
        if self.alphabet is None:
            return indices
        inked = [i for i, index in enumerate(indices) if self.alphabet[index].strip()]
        return indices[inked[0] : inked[-1] + 1] if inked else ()

    def text(self, indices: Indices) -> str:
        """Return the text of some classes."""
        assert self.alphabet is not None
        return "".join(self.alphabet[i] for i in indices)


@dataclass(frozen=True)
class _Reader:
    """Records of a batch."""

    frames: Frames

    def texts(self, outcome: Outcome) -> list[str]:
        """Return the text of each sample.

        Raises:
            OnnxPruneError: There is no alphabet, or it does not fit the classes.
        """
        scores = self.frames.scores(outcome.outputs[0], outcome.count)
        if self.frames.alphabet is None:
            raise OnnxPruneError(
                f"the alphabet of the {scores.shape[-1]} classes is unknown: the model's metadata have no 'character'",
                fix="--alphabet FILE, with one character a line in the order of the classes, without the blank",
            )
        return [self.frames.text(i) for i in self.frames.decode(scores)]

    def words(self, outcome: Outcome) -> Sequence[float]:
        """Return 1 for each sample that is read without an error."""
        assert outcome.targets is not None
        return [float(a == b.strip()) for a, b in zip(self.texts(outcome), outcome.targets, strict=True)]

    def edits(self, outcome: Outcome) -> Sequence[tuple[int, int]]:
        """Return the edits that turn each text into its target, and the target's characters."""
        assert outcome.targets is not None
        distance = _levenshtein()
        pairs = zip(self.texts(outcome), [t.strip() for t in outcome.targets], strict=True)
        return [(distance(ours, theirs), len(theirs)) for ours, theirs in pairs]

    def agreement(self, outcome: Outcome) -> Sequence[float]:
        """Return 1 for each sample that reads as by the original."""
        ours, theirs = (
            self.frames.decode(self.frames.scores(side[0], outcome.count))
            for side in (outcome.outputs, outcome.reference)
        )
        return [float(a == b) for a, b in zip(ours, theirs, strict=True)]

    def divergence(self, outcome: Outcome) -> Sequence[float]:
        """Return the mean divergence of the classes of a frame from the original's, for each sample."""
        q, p = (
            log_probabilities(self.frames.scores(side[0], outcome.count), 2)
            for side in (outcome.outputs, outcome.reference)
        )
        return numbers((np.exp(p) * (p - q)).sum(2).mean(1))


def _levenshtein() -> Callable[[str, str], int]:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as err:
        raise OnnxPruneError(
            f"the accuracy of characters needs rapidfuzz ({err})", fix="pip install 'onnxprune[text]'"
        ) from err
    distance: Callable[[str, str], int] = Levenshtein.distance
    return distance


def character_accuracy(records: Sequence[tuple[int, int]]) -> MetricValue:
    """Return 1 - edits / characters of the targets, both summed over all samples."""
    return of_sums(records, lambda sums: np.asarray(1 - sums[:, 0] / np.maximum(sums[:, 1], 1)))


class RecognitionWatch(Watch):
    """Looks for an alphabet or a blank that are off."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.scored: list[tuple[Array, str]] = []

    def add(self, outcome: Outcome) -> None:
        if outcome.targets is not None and len(self.scored) < 100:
            best = self.frames.scores(outcome.outputs[0], outcome.count).argmax(-1)
            self.classes = outcome.outputs[0].shape[-1]
            self.scored += list(zip(best, outcome.targets, strict=True))

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        words = values.get("word_accuracy")
        alphabet = self.frames.alphabet
        if len(self.scored) < _ENOUGH or alphabet is None or words is None or words.value > 0.2:
            return []
        read = [_collapsed(best, self.frames.blank % self.classes) for best, _ in self.scored]
        for shift in (1, -1):
            shares = [
                "".join(alphabet[(i + shift) % self.classes] for i in indices) == text
                for indices, (_, text) in zip(read, self.scored, strict=True)
            ]
            if np.mean(shares) > words.value + 0.3:
                return [
                    f"the alphabet is off by one: {np.mean(shares):.0%} of the words would be right if every character "
                    f"were one class {'earlier' if shift > 0 else 'later'}; check --alphabet and --blank"
                ]
        if not any(read):
            return ["the model reads no character at all: check the preprocessing (--preprocess, --size) and --blank"]
        return []


def _collapsed(best: Array, blank: int) -> list[int]:
    row = best.tolist()
    return [c for i, c in enumerate(row) if c != blank and (i == 0 or row[i - 1] != c)]


def read_alphabet(path: Path) -> list[str]:
    """Return the characters of a file, one a line; a line of one space stands for a space.

    Raises:
        OnnxPruneError: The file cannot be read, is too large, or has no line.
    """
    try:
        lines = read_text(path, _MOST_BYTES).split("\n")
    except OSError as err:
        raise OnnxPruneError(f"cannot read the alphabet: {err.strerror or err}", where=str(path)) from err
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise OnnxPruneError("the alphabet is empty", where=str(path), fix="write one character a line")
    return lines


def alphabet_of(characters: Sequence[str], classes: int, blank_last: bool, where: str) -> tuple[str, ...]:
    """Return the text of every class: the blank, the characters, and a space that models add to them.

    Raises:
        OnnxPruneError: The number of characters does not fit that of the classes.
    """
    missing = classes - len(characters)
    if missing not in (0, 1, 2):
        raise OnnxPruneError(
            f"{len(characters)} characters do not fit {classes} classes",
            where=where,
            fix="one character a line in the order of the classes, without the blank",
        )
    if missing == 0:  # the file names the blank as well
        return tuple(characters)
    shown = [*characters, *([" "] if missing == 2 else [])]
    return tuple([*shown, ""] if blank_last else ["", *shown])


class Recognize(Task):
    """Text, read by connectionist temporal classification (CTC)."""

    name: ClassVar[str] = "recognize"
    title: ClassVar[str] = "scores of characters for every frame (CTC)"
    targets: ClassVar[tuple[str, ...]] = ("texts",)
    metrics: ClassVar[tuple[str, ...]] = ("word_accuracy", "character_accuracy", "agreement", "kl")
    precedence: ClassVar[int] = 1

    def guess(self, view: ModelView) -> str | None:
        output = _frames_output(view)
        if output is None:
            return None
        if "character" in view.metadata:
            return "one output [n, frames, classes], and an alphabet in the metadata"
        probable = output.operator in ("Softmax", "LogSoftmax") and len(view.outputs) == 1 and view.image is not None
        return "one output [n, frames, classes] with softmax" if probable and (output.size(2) or 0) > 10 else None

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        output = _frames_output(view)
        if output is None:
            raise OnnxPruneError(
                f"the model has no output [n, frames, classes]; it has {[list(t.shape) for t in view.outputs]}"
            )
        axis = _batch_axis(view, output)
        metadata = view.metadata.get("character")
        last = options.blank == "last"
        if options.blank == "auto" and metadata is None and feed is not None:
            last = _blank_is_last(view, output, axis, feed)
        alphabet = None
        classes = output.size(2)
        if classes is None and feed is not None:
            classes = Session(view.model).run(feed, [output.name])[0].shape[-1]
        if options.alphabet is not None and classes is not None:
            alphabet = alphabet_of(read_alphabet(Path(options.alphabet)), classes, last, options.alphabet)
        elif metadata is not None and classes is not None:
            alphabet = alphabet_of(metadata.strip("\n").split("\n"), classes, last, "the model's metadata 'character'")
        frames = Frames(axis, -1 if last else 0, alphabet)
        reader, reads = _Reader(frames), (output.name,)
        return BoundTask(
            self.name,
            f"frames of classes, the blank {'last' if last else 'first'}",
            (
                Metric("word_accuracy", True, "labels", collect=reader.words, reads=reads),
                Metric("character_accuracy", True, "labels", collect=reader.edits, combine=character_accuracy,
                       reads=reads),
            ),
            (
                Metric("agreement", True, "reference", collect=reader.agreement, reads=reads),
                Metric("kl", False, "reference", collect=reader.divergence, reads=reads),
            ),
            view,
            watch=lambda: RecognitionWatch(frames),
        )  # fmt: skip


def _frames_output(view: ModelView) -> Tensor | None:
    return next((t for t in view.outputs if t.rank == 3 and t.dtype.kind in "fV"), None)


def _batch_axis(view: ModelView, output: Tensor) -> int:
    """Return the axis of the samples: the one with the size or the name of the input's first axis."""
    first = view.inputs[0].shape[:1]
    if first and first[0] is not None and output.shape[1] == first[0] != output.shape[0]:
        return 1
    return 0


def _blank_is_last(view: ModelView, output: Tensor, axis: int, feed: Mapping[str, Array]) -> bool:
    """Return whether the last class is more frequent than the first one in a batch."""
    count = len(next(iter(feed.values())))
    scores = Frames(axis, 0).scores(Session(view.model).run(feed, [output.name])[0], count)
    best = scores.argmax(-1)
    return bool((best == scores.shape[-1] - 1).sum() > (best == 0).sum())


TASKS.register(Recognize())
