"""The command `onnxprune run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import DATA_HELP, json_option


@click.command("run")
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Begin with this model instead of the recipe's.")
@click.option("--data", help=f"Instead of the recipe's: {DATA_HELP}")
@click.option("--val-data", help="Likewise.")
@click.option("--test-data", help="Likewise: what the table's accuracy is of.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the run.",
    show_default="the recipe's name, here",
)  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, metavar="STEP.KEY=VALUE",
    help="Change an option of all steps of a kind, or a key of the recipe: retrain.epochs=2, seed=1 (repeatable).",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Throw away what an earlier run has left in the folder.")
@json_option
def run_recipe(**o: Any) -> None:
    """Run a whole method: a recipe of steps, resumable.

    \b
    onnxprune run examples/recipes/dscore-parallel.toml -o run
    onnxprune run dscore-parallel.toml --model m.onnx --data x.npz -o run

    The folder keeps every file that a step makes, and a log. A run that was killed goes on at the first step that is
    not finished with the same command, and ends with the same files. See docs/recipes.md.
    """
    from onnxprune.cli import _display
    from onnxprune.recipes import load_recipe
    from onnxprune.recipes import run_recipe as run

    sources = {key: o[key] for key in ("data", "val_data", "test_data") if o[key]}
    recipe = load_recipe(o["recipe_file"], changes=o["changes"], model=o["model"], sources=sources)
    folder = o["output"] or Path(recipe.name)
    done = run(
        recipe, folder, restart=o["restart"], notice=_display.note,
        progress=lambda title: _display.progress(title, quiet=o["as_json"]),
    )  # fmt: skip
    if o["as_json"]:
        _display.emit_json(done.as_dict())
    else:
        _display.run_table(done, str(folder))
