"""The command `onnxprune run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Listing(Options):
    """List of the recipes that ship."""

    list_recipes: bool = option(False, help="List the recipes that ship.", heading="Output", flag="--list")


@click.command("run", cls=Command)
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path), required=False)
@takes_options
@json_option
def run_recipe(
    recipe_file: Path | None,
    given: RecipeSources,
    run_folder: RunFolder,
    restarting: Restarting,
    listing: Listing,
    events: Events,
    as_json: bool,
) -> None:
    """Run a recipe: a method as resumable steps.

    \b
    onnxprune run --list
    onnxprune run dscore-parallel -o run
    onnxprune run dscore-parallel --model m.onnx --data x.npz -o run
    onnxprune run my-method.toml -o run

    RECIPE is a file, or the name of one that ships. The same command continues an interrupted run at the first
    unfinished step. See docs/recipes.md.
    """
    from onnxprune.cli._support import display
    from onnxprune.recipes import load_recipe
    from onnxprune.recipes import run_recipe as run

    if listing.list_recipes:
        _list(as_json)
        return
    if recipe_file is None:
        raise click.UsageError("Missing argument 'RECIPE': a file, or a name of `onnxprune run --list`")
    sources = {
        key: source
        for key, source in (("data", given.data), ("val_data", given.val_data), ("test_data", given.test_data))
        if source
    }
    recipe = load_recipe(recipe_file, changes=given.changes, model=given.model, sources=sources)
    folder = run_folder.output or Path(recipe.name)
    done = run(
        recipe, folder, restart=restarting.restart, notice=display.note,
        progress=lambda title: display.progress(title, quiet=as_json),
    )  # fmt: skip
    if not display.finished(as_json, done.as_dict):
        display.run_table(done, str(folder))


def _list(as_json: bool) -> None:
    """Show the recipes that ship."""
    from onnxprune.cli._support import display
    from onnxprune.recipes import load_recipe, shipped_recipes

    found = [
        {"name": name, "about": load_recipe(path).about, "file": str(path)} for name, path in shipped_recipes().items()
    ]
    if as_json:
        display.emit_json(found)
        return
    rows = [[r["name"], r["about"]] for r in found]
    display.table(f"{len(found)} recipes: onnxprune run NAME --model MODEL --data DATA", ["name", "method"], rows,
                   prose=True)  # fmt: skip
    click.echo("to write your own, copy one of: " + str(Path(found[0]["file"]).parent))
