"""Reports from sources: the folder of a run, models, JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxprune._utils.files.atomic_files import check_output, write_text
from onnxprune._utils.files.input_files import opened
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.input_sizes import with_shapes_of_each
from onnxprune.ir.reader import load
from onnxprune.reports import _sections
from onnxprune.reports._documents import Document, recognise
from onnxprune.reports._from_files import MeasurementSettings, NamedModel, collect_files
from onnxprune.reports._from_frontier import collect_frontier, is_frontier
from onnxprune.reports._from_run_folder import collect_run, is_run
from onnxprune.reports._report_data import ReportData
from onnxprune.reports.html_page import check_extra, render

_NOT_HTML = (".pdf", ".png", ".svg", ".jpg", ".docx", ".md")


def write_report(
    sources: Sequence[Path], output: Path, *, measuring: MeasurementSettings | None = None, title: str = "",
    progress: Progress | None = None,
) -> ReportData:  # fmt: skip
    """Write the page atomically and return its data.

    Args:
        sources: the folder of a run, or models (the original first) and JSON files, in any order otherwise.
        output: the HTML file.
        measuring: measurements of figures that no file has; a run's folder is never measured.
        title: instead of the recipe's or the models' names.
        progress: called with (done, total) timed runs.

    Raises:
        OnnxPruneError: a source that does not exist, a folder that is no run's, nothing in any source that could be
            told; the extra `report` is not installed; the output cannot be written.
    """
    check_extra()
    if output.suffix.lower() in _NOT_HTML:
        raise OnnxPruneError(
            f"a report is an HTML page; {output.name!r} has another ending",
            fix=f"{output.stem}.html; a browser prints it as PDF",
        )
    for source in sources:
        check_output(output, source)
    report = collect(sources, measuring=measuring, progress=progress)
    report.title = title or report.title
    write_text(output, render(report))
    return report


@dataclass(frozen=True)
class FrontierPage:
    """Page of a frontier for `explore`.

    Attributes:
        html: The page; it links the files below `files/`.
        files: Path of each linked file, by its path relative to the folder.
        points: Number of points.
        problems: Missing or damaged files.
    """

    html: str
    files: dict[str, Path]
    points: int
    problems: list[str]


def frontier_page(folder: Path) -> FrontierPage:
    """Return the page of a frontier, the same as its report, with links to the files of the points.

    Raises:
        OnnxPruneError: The folder holds no finished frontier; the extra `report` is not installed.
    """
    check_extra()
    if not is_frontier(folder):
        raise OnnxPruneError(
            "the folder holds no frontier", where=str(folder),
            fix="name the folder of a finished `onnxprune frontier`; the same command finishes an interrupted one",
        )  # fmt: skip
    report = collect_frontier(folder)
    assert report.frontier is not None
    paths = [f.path for d in report.frontier.details for f in d.files]
    inside = {name: folder / name for name in dict.fromkeys(paths)}
    return FrontierPage(render(report, served=True), inside, len(report.frontier.rows), report.problems)


def collect(
    sources: Sequence[Path], *, measuring: MeasurementSettings | None = None, progress: Progress | None = None
) -> ReportData:
    """Collect the report data of sources; see `write_report`."""
    for path in sources:
        if not path.exists():
            raise OnnxPruneError(f"no such file or folder: {str(path)!r}")
    folders = [p for p in sources if p.is_dir()]
    files = [p for p in sources if not p.is_dir()]
    if len(folders) > 1:
        raise OnnxPruneError("a report is of one run", fix="make one report for each folder")
    if folders and not is_run(folders[0]) and not is_frontier(folders[0]):
        raise OnnxPruneError(
            "the folder holds no run of a recipe and no frontier", where=str(folders[0]),
            fix="give a folder that `onnxprune run` or `onnxprune frontier` wrote, or the files themselves",
        )  # fmt: skip
    problems = ReportData("")
    models: list[NamedModel] = []
    documents: list[Document] = []
    stems = [p.name for p in files]
    for path in files:
        name = path.name if stems.count(path.name) == 1 else str(path)
        with _sections.noting(problems, name):
            if path.suffix.lower() == ".json" or _begins_like_json(path):
                documents.append(recognise(path))
            else:
                models.append(NamedModel(name, path, load(path)))
    if measuring is not None and measuring.shapes:
        sized = with_shapes_of_each([m.model for m in models], measuring.shapes)
        models = [replace(m, model=model) for m, model in zip(models, sized, strict=True)]
    if folders and is_frontier(folders[0]):
        report = collect_frontier(folders[0])
        if models or documents:
            beside = collect_files(models, documents, measuring or MeasurementSettings(), progress)
            beside.frontier = report.frontier
            beside.facts += report.facts
            beside.problems += report.problems
            report = beside
    elif folders:
        report = collect_run(folders[0], [m.model for m in models])
        report.problems += [f"{d.path.name}: not shown beside the folder of a run" for d in documents]
    else:
        report = collect_files(models, documents, measuring or MeasurementSettings(), progress)
    report.problems = problems.problems + report.problems
    if not any(
        (
            report.stages,
            report.groups,
            report.curves,
            report.proofs,
            report.tables,
            report.locked,
            report.recipe,
            report.frontier,
        )
    ):
        raise OnnxPruneError("nothing to report: " + "; ".join(report.problems or ["no sources"]))
    return report


def _begins_like_json(path: Path) -> bool:
    try:
        with opened(path) as file:
            return file.read(64).lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False
