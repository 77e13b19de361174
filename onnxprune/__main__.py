"""`python -m onnxprune`."""

from onnxprune.cli import run_program

run_program()
