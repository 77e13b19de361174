"""Base class of a recipe's steps, with their context and result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Preprocess, subset
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.options import AnalysisOptions, InputShapes, TaskOptions
from onnxprune.pipeline import analyze

MODEL, SCORES, CURVES, PLAN = "model", "scores", "curves", "plan"
"""Values passed from step to step. All but the model belong to the model they were computed from, and are dropped when
a step makes another model."""

DATA = ("data", "val_data", "test_data")


@dataclass(frozen=True)
class RecipeDefaults:
    """Options shared by all steps of a recipe.

    Attributes:
        preprocess: conversion of samples into the model's input.
        seed, threads, device: defaults for every step with such an option.
        analysis: channels that the analysis frees.
        task: task of the model, and its metric.
        shapes: sizes of dynamic inputs.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    analysis: AnalysisOptions = field(default_factory=AnalysisOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    shapes: InputShapes = field(default_factory=InputShapes)

    def load(self, path: Path) -> Model:
        """Read a model, with the recipe's sizes of its inputs."""
        return load(path, shapes=self.shapes.shapes)

    def analyze(self, model: Model) -> Analysis:
        """Return the analysis of a model under the recipe."""
        return analyze(model, attention=self.analysis.attention, include_inexact=self.analysis.include_inexact)


@dataclass(frozen=True)
class StepContext:
    """Inputs of a step.

    Attributes:
        folder: the step's own; existing files are those of the same step, interrupted.
        files: artifacts of earlier steps for the current model, by the names above.
        original: the recipe's model.
        base: folder of the recipe, to which its paths are relative.
        data: the recipe's, by the names of `DATA`.
        defaults: what all steps share.
        tick: called with (done, total).
        notify: called with messages for the user.
    """

    folder: Path
    files: Mapping[str, Path]
    original: Path
    base: Path
    data: Mapping[str, Data]
    defaults: RecipeDefaults
    tick: Progress
    notify: Callable[[str], None]

    @cached_property
    def model(self) -> Model:
        """Return the current model."""
        return self.defaults.load(self.files[MODEL])

    @cached_property
    def analysis(self) -> Analysis:
        """Return the analysis of the current model."""
        return self.defaults.analyze(self.model)

    def samples(self, name: str, images: int | None = None) -> Data:
        """Return data by its name in the recipe, optionally the first `images` samples, evenly from the classes."""
        return subset(self.data[name], images) if images else self.data[name]


@dataclass(frozen=True)
class StepResult:
    """Result of a step.

    Attributes:
        files: its artifacts, by the names above; files of other kinds under other names.
        note: a line for the log.
    """

    files: Mapping[str, Path]
    note: str = ""


class RecipeStep(ABC):
    """Step of a recipe. Subclasses are frozen dataclasses; their fields, nested ones included, are its options.

    A killed step is run again in the same folder: it starts anew or resumes from the files there. It writes atomically.
    """

    do: ClassVar[str]
    """Name in the recipe, that of the command with the same effect."""

    @property
    def produces(self) -> tuple[str, ...]:
        """Return the names of its artifacts."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the artifacts that earlier steps must have produced for the current model."""
        return ()

    @property
    def needs_data(self) -> tuple[str, ...]:
        """Return the data it needs, of `DATA`."""
        return ()

    def check(self, analysis: Analysis, base: Path) -> None:
        """Raise on errors that can be found before the first step: unknown names, patterns that match nothing.

        Args:
            analysis: analysis of the recipe's model.
            base: folder that paths are relative to.

        Raises:
            OnnxPruneError: with what is wrong.
        """
        return

    @abstractmethod
    def run(self, context: StepContext) -> StepResult:
        """Run the step.

        Raises:
            OnnxPruneError: whatever the stage it calls raises.
        """

    def tidy(self, folder: Path) -> None:
        """Remove the files that only a resumed step needs, after the step is recorded as finished."""
        return


def after(have: Iterable[str], produces: Iterable[str]) -> set[str]:
    """Return the artifacts available to the next step."""
    made = set(produces)
    return made if MODEL in made else set(have) | made


def pick(name: str) -> str:
    """Return the name if it is one of the recipe's data.

    Raises:
        OnnxPruneError: no such name.
    """
    if name not in DATA:
        raise OnnxPruneError(f"'on' names one of the recipe's data ({', '.join(DATA)}), not {name!r}")
    return name
