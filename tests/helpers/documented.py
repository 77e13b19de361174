"""Code blocks of pages, and how the tests run them.

A page is one story: its blocks run in order, in one folder, with one set of Python names. Blocks that do not run here
say why in a comment right before them, `<!-- not run: reason -->`; their commands and options must still exist.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
from click.testing import CliRunner
from markdown_it import MarkdownIt

from onnxprune.cli import main

ROOT = Path(__file__).parent.parent.parent
NOT_RUN = re.compile(r"\s*<!-- not run: (?P<reason>\S.*?) -->\s*", re.S)
PROGRAMS = ("onnxprune", "python", "pip", "pipx", "make", "eval", "for", "done", "cd", "export", "mkdocs")
# Output and other text that a page shows: never commands.
OTHER = {"json", "text", "toml"}


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        where: page and line, for messages.
        language: of the fence; "" where there is none.
        text: the code.
        not_run: why it does not run here; None if it does.
    """

    where: str
    language: str
    text: str
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    """All code blocks of a page, in order; indented ones too."""
    found = []
    before = ""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            marked = NOT_RUN.fullmatch(before)
            where = f"{page}:{token.map[0] + 1}"
            found.append(Block(where, token.info.split(" ")[0], token.content, marked["reason"] if marked else None))
        before = token.content if token.type == "html_block" else ""
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The command lines of a block, as words. What a page shows of a program's output is no command.

    A line with a prompt is one; where there are prompts, nothing else is.
    """
    if block.language in OTHER or block.language == "python":
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in prompted or lines:
        words = shlex.split(line, comments=True)
        if words and words[0] in PROGRAMS:
            found.append(words)
        else:
            assert not words or block.language not in ("sh", "bash", "console") or prompted, f"{block.where}: {line}"
    return found


def parse(words: list[str], where: str) -> None:
    """Holds one command line against what there is: commands, options and their values, extras, targets, scripts."""
    program, *rest = words
    if program == "onnxprune" or words[:3] == ["python", "-m", "onnxprune"]:
        rest = rest if program == "onnxprune" else rest[2:]
        if rest and not rest[0].startswith("-"):
            command = main.commands[rest[0]]
            try:
                command.make_context(rest[0], rest[1:], parent=click.Context(main))
            except click.exceptions.Exit:
                pass  # --help
            except click.UsageError as err:
                raise AssertionError(f"{where}: {' '.join(words)}: {err.format_message()}") from err
    elif program in ("pip", "pipx"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for names in re.findall(r"onnxprune(?:\.whl)?\[([\w,-]+)\]", " ".join(words)):
            assert set(names.split(",")) <= set(project["optional-dependencies"]), f"{where}: {' '.join(words)}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (w for w in rest if "=" not in w):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"{where}: make {target}"
    elif program == "python" and rest[0].endswith(".py"):
        script = ROOT / rest[0]
        source = script.read_text(encoding="utf-8")
        for option in (w for w in rest[1:] if w.startswith("--")):
            assert re.search(rf'["\s]{option.split("=")[0]}["/\s]', source), f"{where}: {rest[0]} has no {option}"


def parse_block(block: Block) -> None:
    """Holds a block that does not run against what there is: Python must be Python, commands must exist."""
    if block.language == "python":
        ast.parse(block.text)
    for words in commands_of(block):
        parse(words, block.where)


def run_block(block: Block, names: dict[str, object]) -> None:
    """Runs a block in the current folder: Python with these names, commands as if typed."""
    if block.language == "python":
        exec(compile(block.text, block.where, "exec"), names)
    for program, *rest in commands_of(block):
        line = f"{block.where}: {program} {' '.join(rest)}"
        if program == "onnxprune":
            result = CliRunner().invoke(main, rest)
            assert result.exit_code == 0, f"{line}\n{result.output}{result.exception!r}"
            for option, value in pairwise(rest):
                assert option not in ("-o", "--plot", "--per-class") or Path(value).exists(), f"{line}: no {value}"
        else:
            assert program == "python", f"{line}: mark what does not run here"
            assert rest[0].startswith("examples/"), f"{line}: mark what does not run here"
            run_script(ROOT / rest[0], *rest[1:])


def run_script(path: Path, *args: str) -> None:
    """Runs a script with arguments, in this process."""
    before = sys.argv
    sys.argv = [path.name, *args]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
