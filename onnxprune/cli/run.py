"""The command `onnxprune run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.options import Events, Options, Restarting, option
from onnxprune.options.data import SOURCES


@dataclass(frozen=True, kw_only=True, repr=False)
class RecipeSources(Options):
    """Model, data and options to use instead of the recipe's."""

    model: Path | None = option(None, help="Model to start from, instead of the recipe's.", heading="Model")
    data: str | None = option(None, help=f"Data, instead of the recipe's: {SOURCES}.", heading="Data")
    val_data: str | None = option(None, help="Validation data, likewise.", heading="Data")
    test_data: str | None = option(None, help="Test data of the table's accuracy, likewise.", heading="Data")
    changes: tuple[str, ...] = option(
        (), heading="Model", flag="--set", metavar="STEP.KEY=VALUE",
        help="Change an option of all steps of a kind, or a key of the recipe: retrain.epochs=2, seed=1 (repeatable).",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class RunFolder(Options):
    """Folder of a run."""

    output: Path | None = option(
        None, help="Folder of the run.", heading="Output", flag=("-o", "--output"), metavar="FOLDER",
        shown="the recipe's name, here",
    )  # fmt: skip


@click.command("run", cls=Command)
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@takes_options
@json_option
def run_recipe(
    recipe_file: Path,
    given: RecipeSources,
    run_folder: RunFolder,
    restarting: Restarting,
    events: Events,
    as_json: bool,
) -> None:
    """Run a recipe: a method as resumable steps.

    \b
    onnxprune run examples/recipes/dscore-parallel.toml -o run
    onnxprune run dscore-parallel.toml --model m.onnx --data x.npz -o run

    The folder holds every file that a step writes, and a log. The same command continues an interrupted run at the
    first unfinished step, and the files are those of an uninterrupted run. See docs/recipes.md.
    """
    from onnxprune.cli import _display
    from onnxprune.recipes import load_recipe
    from onnxprune.recipes import run_recipe as run

    sources = {
        key: source
        for key, source in (("data", given.data), ("val_data", given.val_data), ("test_data", given.test_data))
        if source
    }
    recipe = load_recipe(recipe_file, changes=given.changes, model=given.model, sources=sources)
    folder = run_folder.output or Path(recipe.name)
    done = run(
        recipe, folder, restart=restarting.restart, notice=_display.note,
        progress=lambda title: _display.progress(title, quiet=as_json),
    )  # fmt: skip
    if not _display.finished(as_json, done.as_dict):
        _display.run_table(done, str(folder))
