"""Generate pages of the site from CHANGELOG, examples, registries and numbers (a hook of mkdocs).

Links to files outside docs/ are rewritten to their generated pages. A page that would fetch something from the network
causes a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import posixpath
import re
import sys
from functools import cache
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

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Files outside docs/ that have a page, under the name a link uses, from the root of the repository.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples": "examples/index.md",
    "examples/ci/github-workflow.yml": "examples/ci.md",
    "examples/ci/pre-commit-config.yaml": "examples/ci.md",
    "examples/extension": "examples/extension.md",
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in EXAMPLES},
}
# A link or image of a page that is no address and no anchor of the page itself.
# Public names by task: title, file, sentence, names.
TASKS = (
    ("Prune in one call", "prune", "Score, plan, remove, prove and recover; accuracy over cost.",
     ("prune", "Pruned", "frontier", "Frontier", "FrontierPoint")),
    ("Read and write models", "models", "A model is a path, a `Model` or a ModelProto wherever one is taken.",
     ("load", "save", "Model", "to_proto")),
    ("Data and accuracy", "data", "Samples from files, arrays and loaders; metrics of a task.",
     ("load_data", "Data", "Preprocess", "Calibration", "evaluate", "Evaluation", "Accuracy", "TaskOptions")),
    ("Find and score channels", "score", "Coupled groups, their cost, and their importance.",
     ("analyze", "Analysis", "Group", "CostModel", "Cost", "score", "Scores", "sensitivity", "Curves", "load_curves",
      "save_curves")),
    ("Plan", "plan", "Which channels are removed, for a target and under constraints.",
     ("plan", "plan_steps", "Target", "Constraints", "Plan", "Removal", "load_plan", "save_plan", "latency_model",
      "LatencyModel")),
    ("Remove and prove", "apply", "From a plan to a smaller model, and its certificate.",
     ("apply", "compile_plan", "Compiled", "verify", "Verification")),
    ("Recover and train", "recover", "Accuracy without training, with training, in your own loop.",
     ("recover", "Recovered", "retrain", "Settings", "to_torch", "write_back")),
    ("Measure latency", "bench", "Models in turn on one machine.", ("bench", "BenchResults", "BenchResult")),
    ("Errors", "errors", "Known errors say what happened, where, and what to do.",
     ("OnnxPruneError", "VerificationError")),
)  # fmt: skip
LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
FETCHED = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*rel=["']?(?:stylesheet|preconnect|icon|preload)["']?[^>]*href=["']?(?:https?:)?//""")  # fmt: skip  # noqa: E501

LOGO = re.compile(r'(<img src="[^"]*logo\.svg" alt="logo")')
IMAGE = re.compile(r"<img [^>]*>")
# Place of a table of tools/zoo_parts/zoo_page.py.
TABLE = re.compile(r"<!-- table: (\w+) -->")

log = logging.getLogger("mkdocs.site_pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "examples/index.md": examples_index(),
        **{f"examples/{path.stem}.md": example_page(path) for path in EXAMPLES},
        "examples/extension.md": extension_page(),
        "examples/ci.md": ci_page(),
        **python_pages(),
        **cli_pages(),
        "reference/ops.md": ops_page(),
        "reference/criteria.md": criteria_page(),
        "reference/passes.md": passes_page(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages of the reference to the navigation."""
    names = {
        "reference/cli.md": [f"reference/cli/{name}.md" for name in main.commands],
        "reference/python.md": [f"reference/python/{file}.md" for _, file, _, _ in TASKS],
    }
    titles = {"reference/cli.md": "Command line", "reference/python.md": "Python"}
    for section in config.nav or []:
        entries = section.get("Reference") if isinstance(section, dict) else None
        if entries is not None:
            entries[:] = [{titles[e]: [e, *names[e]]} if isinstance(e, str) and e in names else e for e in entries]
    return config


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

    return TABLE.sub(lambda found: coverage()[found[1]], LINK.sub(led, markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of anything that a browser would fetch from elsewhere."""
    for found in FETCHED.findall(output):
        log.warning("%s fetches from the network: %s", page.file.src_uri, found)
    # The theme's dialog of the search has no name, and its logo no size.
    dialog = 'data-md-component="search" role="dialog"'
    output = output.replace(dialog, f'{dialog} aria-label="Search"')
    return LOGO.sub(r'\1 width="24" height="24"', output)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give pictures their size, so that nothing moves when they arrive."""

    def sized(found: re.Match[str]) -> str:
        tag = found[0]
        source = re.search(r'src="([^":]+)"', tag)
        if source is None or " width=" in tag:
            return tag
        path = Path(config.docs_dir) / posixpath.normpath(posixpath.join(page.file.dest_uri, "..", source[1]))
        size = picture_size(path)
        return tag if size is None else tag.replace("<img", f'<img width="{size[0]}" height="{size[1]}"', 1)

    return IMAGE.sub(sized, html)


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a PNG or SVG; None for another file."""
    if path.suffix == ".png" and path.is_file():
        head = path.read_bytes()[16:24]
        return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
    if path.suffix == ".svg" and path.is_file():
        text = path.read_text(encoding="utf-8")[:2000]
        box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', text)
        return (round(float(box[1])), round(float(box[2]))) if box else None
    return None


@cache
def coverage() -> dict[str, str]:
    """Return the tables of the coverage page, from its numbers."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from zoo_parts import zoo_page
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return zoo_page.tables(json.loads((ROOT / "tools" / "zoo_parts" / "coverage.json").read_text(encoding="utf-8")))


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


def cli_pages() -> dict[str, str]:
    """Return the help of all commands, and a page for each with its own, as in the terminal."""
    top = click.Context(main, info_name="onnxprune", max_content_width=100, terminal_width=100)
    rows = [f"| [`{name}`](cli/{name}.md) | {cell(c.get_short_help_str(120))} |" for name, c in main.commands.items()]
    table = "\n".join(["| command | does |", "|---|---|", *rows])
    pages = {"reference/cli.md": f"# Command line\n\n{table}\n\n```text\n{main.get_help(top)}\n```\n"}
    for name, command in main.commands.items():
        context = click.Context(command, info_name=name, parent=top, max_content_width=100, terminal_width=100)
        pages[f"reference/cli/{name}.md"] = f"# onnxprune {name}\n\n```text\n{command.get_help(context)}\n```\n"
    return pages


def python_pages() -> dict[str, str]:
    """Return the list of public names by task, and a page for each task with their docstrings.

    Raises:
        ValueError: A public name belongs to no task, or a task has a name that is not public.
    """
    named = [name for _, _, _, names in TASKS for name in names]
    if sorted(named) != sorted(name for name in onnxprune.__all__ if name != "__version__"):
        strange = set(named) ^ (set(onnxprune.__all__) - {"__version__"})
        raise ValueError(f"TASKS of tools/pages/site_pages.py and onnxprune.__all__ differ in {sorted(strange)}")
    lines = ["# Python\n\n`import onnxprune as op`, by task:\n", "| task | names |", "|---|---|"]
    pages = {}
    for title, file, sentence, names in TASKS:
        links = ", ".join(f"[`{n}`](python/{file}.md#onnxprune.{n})" for n in names)
        lines.append(f"| **[{title}](python/{file}.md)**<br>{sentence} | {links} |")
        pages[f"reference/python/{file}.md"] = "\n".join(
            [f"# {title}\n\n{sentence}\n", *(f"::: onnxprune.{name}\n" for name in names)]
        )
    example = (inspect.getdoc(onnxprune) or "").split("\n\nFunctions, in the order")[0]
    code = "\n".join(line.removeprefix("    ") for line in example.split("\n\n", 1)[1].splitlines())
    lines.append(f"\n```python\n{code}\n```\n")
    lines.append("Results are shown as tables in notebooks. Names are loaded on first use.\n")
    return {"reference/python.md": "\n".join(lines), **pages}


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


def ci_page() -> str:
    """Return the workflows for CI."""
    parts = [
        f"## `{path.relative_to(ROOT).as_posix()}`\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n"
        for path in sorted((ROOT / "examples" / "ci").iterdir())
    ]
    return "\n".join(["# In CI\n", *parts])


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
