"""From sources (a run's folder, models, JSON) to the story and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onnxprune.errors import OnnxPruneError
from onnxprune.files import check_output, write_text
from onnxprune.model import load
from onnxprune.reports import parts
from onnxprune.reports.documents import Document, recognise
from onnxprune.reports.files import Measuring, Named, tell_files
from onnxprune.reports.page import check_extra, render
from onnxprune.reports.run_folder import is_run, tell_run
from onnxprune.reports.story import Story

Tick = Callable[[int, int], None]


def write_report(
    sources: Sequence[Path], output: Path, *, measuring: Measuring | None = None, title: str = "",
    progress: Tick | None = None,
) -> Story:  # fmt: skip
    """Writes the page, whole or not at all, and gives what it tells.

    Args:
        sources: the folder of a run, or models (the original first) and JSON files, in any order otherwise.
        output: the HTML file.
        measuring: what is measured where files do not say it; a run's folder is taken as it is.
        title: instead of the recipe's or the models' names.
        progress: called with (done, total) timed runs.

    Raises:
        OnnxPruneError: a source that does not exist, a folder that is no run's, nothing in any source that could be
            told; the extra `report` is not installed; the output cannot be written.
    """
    check_extra()
    for source in sources:
        check_output(output, source)
    story = tell(sources, measuring=measuring, progress=progress)
    story.title = title or story.title
    write_text(output, render(story))
    return story


def tell(sources: Sequence[Path], *, measuring: Measuring | None = None, progress: Tick | None = None) -> Story:
    """The story of sources; see `write_report`."""
    for path in sources:
        if not path.exists():
            raise OnnxPruneError(f"no such file or folder: {str(path)!r}")
    folders = [p for p in sources if p.is_dir()]
    files = [p for p in sources if not p.is_dir()]
    if len(folders) > 1:
        raise OnnxPruneError("a report is of one run", fix="make one report for each folder")
    if folders and not is_run(folders[0]):
        raise OnnxPruneError(
            "the folder holds no run of a recipe", where=str(folders[0]),
            fix="give a folder that `onnxprune run` wrote, or the files themselves",
        )  # fmt: skip
    problems = Story("")
    models: list[Named] = []
    documents: list[Document] = []
    stems = [p.name for p in files]
    for path in files:
        name = path.name if stems.count(path.name) == 1 else str(path)
        with parts.noting(problems, name):
            if path.suffix.lower() == ".json" or _begins_like_json(path):
                documents.append(recognise(path))
            else:
                models.append(Named(name, path, load(path)))
    if folders:
        story = tell_run(folders[0], [m.model for m in models])
        story.problems += [f"{d.path.name}: not shown beside the folder of a run" for d in documents]
    else:
        story = tell_files(models, documents, measuring or Measuring(), progress)
    story.problems = problems.problems + story.problems
    if not any((story.stages, story.bars, story.curves, story.proofs, story.extras, story.locked, story.recipe)):
        raise OnnxPruneError("nothing to report:\n  " + "\n  ".join(story.problems or ["no sources"]))
    return story


def _begins_like_json(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False
