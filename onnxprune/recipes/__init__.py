"""Recipes: whole methods as files of steps, run, resumed and summed up in a table. See docs/recipes.md.

recipe = load_recipe("dscore-parallel")
table = run_recipe(recipe, Path("run"))
"""

from onnxprune.recipes._table import RunTable as RunTable
from onnxprune.recipes.recipe import STEPS as STEPS
from onnxprune.recipes.recipe import Recipe as Recipe
from onnxprune.recipes.recipe import load_recipe as load_recipe
from onnxprune.recipes.recipe import shipped_recipes as shipped_recipes
from onnxprune.recipes.runner import run_recipe as run_recipe

__all__ = ["STEPS", "Recipe", "RunTable", "load_recipe", "run_recipe", "shipped_recipes"]
