"""Generate pages of the site from README, CHANGELOG, examples and registries (a hook of mkdocs).

Links to files outside docs/ are rewritten to their generated pages. A page that would fetch something from the network
causes a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import ast
import inspect
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import onnxprune
from onnxprune.cli import main
from onnxprune.criteria import all_criteria
from onnxprune.ops import all_ops
from onnxprune.passes import all_passes

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Files outside docs/ that have a page, under the name a link uses, from the root of the repository.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples": "examples/index.md",
    "examples/extension": "examples/extension.md",
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in EXAMPLES},
}
# A link or image of a page that is no address and no anchor of the page itself.
LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
FETCHED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*rel=["']?(?:stylesheet|preconnect|icon|preload)["']?[^>]*href=["']?(?:https?:)?//""")  # fmt: skip  # noqa: E501

log = logging.getLogger("mkdocs.site_pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "examples/index.md": examples_index(),
        **{f"examples/{path.stem}.md": example_page(path) for path in EXAMPLES},
        "examples/extension.md": extension_page(),
        "reference/python.md": python_page(),
        "reference/cli.md": cli_page(),
        "reference/ops.md": ops_page(),
        "reference/criteria.md": criteria_page(),
        "reference/passes.md": passes_page(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between docs/ and other files to pages."""
    here = page.file.src_uri
    sources = {site: source for source, site in OUTSIDE.items()}
    # Links are relative to the page's file in the repository.
    source = sources.get(here, f"docs/{here}")

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        site = OUTSIDE.get(target, target.removeprefix("docs/"))
        if site == target:
            return match[0]  # mkdocs reports it
        relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"{match['text']}({relative}{match['anchor'] or ''})"

    return LINK.sub(led, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of anything that a browser would fetch from elsewhere."""
    for found in FETCHED.findall(output):
        log.warning("%s fetches from the network: %s", page.file.src_uri, found)
    return output


def cell(text: str) -> str:
    """Escape text for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def summary(thing: Any) -> str:
    """Return the first paragraph of a docstring."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0]


def ops_page() -> str:
    """Return the table of operators, from the registry."""
    records = sorted(all_ops().items())
    lines = [
        f"# Operators\n\n{len(records)} operators have a rule; any other locks what it touches, and `inspect` says so. "
        "*Sizes* marks those whose attributes or constants follow when channels go, *MACs* those that count.\n",
        "| operator | how channels pass | sizes | MACs |",
        "|---|---|---|---|",
    ]
    for (domain, op), spec in records:
        name = f"{domain}::{op}" if domain else op
        patch, macs = ("yes" if part else "" for part in (spec.patch, spec.macs))
        lines.append(f"| `{name}` | {cell(summary(spec.couple))} | {patch} | {macs} |")
    return "\n".join(lines) + "\n"


def criteria_page() -> str:
    """Return a section for each criterion, from the registry."""
    parts = ["# Criteria, one by one\n\nHow they compare, and which to take: [Criteria](../criteria.md).\n"]
    for name, cls in all_criteria().items():
        parts += [
            f"## `{name}`\n\n{cls.title[0].upper()}{cls.title[1:]}.\n\n"
            f"Source: {cls.source}. Reduction `{cls.default_reduce}`, normalisation `{cls.default_normalize}`.\n\n"
            f"```text\n{inspect.getdoc(cls) or ''}\n```\n"
        ]
    return "\n".join(parts)


def passes_page() -> str:
    """Return a section for each pass: its docstring and the head of its file (Before, After, Conditions)."""
    parts = [
        "# Passes\n\nA pass takes a model and returns a model. What every one of them promises (inputs and outputs "
        "unchanged, the graph well-formed) is checked around each call.\n"
    ]
    for name, cls in all_passes().items():
        head = inspect.getdoc(inspect.getmodule(cls)) or ""
        parts += [f"## `{name}`\n\n`{cls.__module__}.{cls.__name__}`: {summary(cls)}\n\n```text\n{head}\n```\n"]
    return "\n".join(parts)


def cli_page() -> str:
    """Return the help of every command, as in the terminal."""
    top = click.Context(main, info_name="onnxprune", max_content_width=100, terminal_width=100)
    parts = [f"# Command line\n\n```text\n{main.get_help(top)}\n```\n"]
    for name, command in main.commands.items():
        context = click.Context(command, info_name=name, parent=top, max_content_width=100, terminal_width=100)
        parts.append(f"## `onnxprune {name}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def python_page() -> str:
    """Return the package's docstring, then every public name with its own, in the order of the job."""
    head = inspect.getdoc(onnxprune) or ""
    lines = [f"# Python\n\nThe names of `import onnxprune`, from their docstrings.\n\n```text\n{head}\n```\n"]
    lines += [f"::: onnxprune.{name}\n" for name in onnxprune.__all__ if name != "__version__"]
    return "\n".join(lines)


def head_of(path: Path) -> str:
    """Return the title of an example: its first heading, or the first line of its docstring."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^# # (.*)$", text, re.M)
    return found[1] if found else (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].rstrip(".")


def examples_index() -> str:
    """Return the list of examples."""
    lines = ["# Examples\n\nEach of them runs in the tests, in seconds, on models and data that ship.\n"]
    lines += [f"- [{path.name}](examples/{path.name}): {head_of(path)}" for path in EXAMPLES]
    return "\n".join(lines) + "\n"


def extension_page() -> str:
    """Return the files of the package that extends onnxprune."""
    folder = ROOT / "examples" / "extension"
    parts = ["# A package that extends onnxprune\n"]
    for path in sorted([*folder.rglob("*.toml"), *folder.rglob("*.py")]):
        language = {".py": "python", ".toml": "toml"}[path.suffix]
        name = path.relative_to(ROOT).as_posix()
        parts.append(f"## `{name}`\n\n```{language}\n{path.read_text(encoding='utf-8')}```\n")
    return "\n".join(parts)


def example_page(path: Path) -> str:
    """Return an example as a page: cells of markdown as text, the rest as code."""
    text = path.read_text(encoding="utf-8")
    if "# %%" not in text:
        return f"# {head_of(path)}\n\n`examples/{path.name}`\n\n```python\n{text}```\n"
    parts = []
    for piece in re.split(r"^# %%", text, flags=re.M)[1:]:
        kind, _, body = piece.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"
