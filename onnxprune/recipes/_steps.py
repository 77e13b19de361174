"""What a step of a recipe is, what it works on and what it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from onnxprune._utils.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Preprocess, subset
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.options import AnalysisOptions
from onnxprune.pipeline import analyze

MODEL, SCORES, CURVES, PLAN = "model", "scores", "curves", "plan"
"""What is handed from step to step. All but the model belong to the model they were made from: a step that makes
another model ends them."""

DATA = ("data", "val_data", "test_data")


@dataclass(frozen=True)
class RecipeDefaults:
    """What all steps of a recipe share.

    Attributes:
        preprocess: how samples become the model's input.
        seed, threads, device: of every step that has such an option and does not say otherwise.
        analysis: channels that the analysis frees.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    analysis: AnalysisOptions = field(default_factory=AnalysisOptions)

    def analyze(self, model: Model) -> Analysis:
        """What may go from a model under the recipe."""
        return analyze(model, attention=self.analysis.attention, include_inexact=self.analysis.include_inexact)


@dataclass(frozen=True)
class StepContext:
    """Where a step works.

    Attributes:
        folder: the step's own; whatever is there is of the same step, interrupted.
        files: what earlier steps made of the model as it is now, by the names above.
        original: the recipe's model.
        base: folder of the recipe, that paths in it are relative to.
        data: the recipe's, by the names of `DATA`.
        defaults: what all steps share.
        tick: called with (done, total).
        notify: called with lines for people.
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
        """The model as it is now."""
        return load(self.files[MODEL])

    @cached_property
    def analysis(self) -> Analysis:
        """Of the model as it is now."""
        return self.defaults.analyze(self.model)

    def samples(self, name: str, images: int | None = None) -> Data:
        """Data by its name in the recipe, or the first so many samples of it, evenly from the classes."""
        return subset(self.data[name], images) if images else self.data[name]


@dataclass(frozen=True)
class StepResult:
    """What a step leaves.

    Attributes:
        files: what it made, by the names above; files of other kinds under names of their own.
        note: a line for the log.
    """

    files: Mapping[str, Path]
    note: str = ""


class RecipeStep(ABC):
    """A step. Subclasses are frozen dataclasses: their fields, and those of the dataclasses in them, are its options.

    A step that was killed is run again in the same folder, so what it does is either done from the start or resumed
    from what it finds there; what it writes appears whole or not at all.
    """

    do: ClassVar[str]
    """What the recipe calls it: the command of the same name does the same."""

    @property
    def produces(self) -> tuple[str, ...]:
        """What it hands on."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """What earlier steps must have made of the model as it is then."""
        return ()

    @property
    def needs_data(self) -> tuple[str, ...]:
        """Which data it needs, of `DATA`."""
        return ()

    def check(self, analysis: Analysis, base: Path) -> None:
        """Refuses what can be known to be wrong before the first step: unknown names, patterns that match nothing.

        Args:
            analysis: of the recipe's model.
            base: folder that paths are relative to.

        Raises:
            OnnxPruneError: with what is wrong.
        """
        return

    @abstractmethod
    def run(self, context: StepContext) -> StepResult:
        """Does the work.

        Raises:
            OnnxPruneError: whatever the stage it calls raises.
        """

    def tidy(self, folder: Path) -> None:
        """Removes what only a resumed step needs, once the step is on record as finished."""
        return


def after(have: Iterable[str], produces: Iterable[str]) -> set[str]:
    """What is there for the next step."""
    made = set(produces)
    return made if MODEL in made else set(have) | made


def pick(name: str) -> str:
    """One of the recipe's data.

    Raises:
        OnnxPruneError: no such name.
    """
    if name not in DATA:
        raise OnnxPruneError(f"'on' names one of the recipe's data ({', '.join(DATA)}), not {name!r}")
    return name
