"""`explore FOLDER` without a browser: what is served of a frontier, and folders that hold none."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import CommandLine
from frontiers import digits_frontier

from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline import load_frontier
from onnxprune.reports import frontier_page, write_report
from onnxprune.reports.explorer import Server, page_site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_frontier(tmp_path_factory.mktemp("frontier") / "out")


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    page = frontier_page(folder)
    running = Server(page_site(page.html, page.files))
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    yield running
    running.stop()
    thread.join(20)


def get(server: Server, path: str) -> tuple[int, bytes, dict[str, str]]:
    token = server.url.rstrip("/").rsplit("/", 1)[1]
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=20)
    connection.request("GET", f"/{token}/{path}")
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_files_of_points_are_downloads_and_others_are_not_served(server: Server, folder: Path) -> None:
    status, body, headers = get(server, "files/l2/0.4000/model.onnx")
    assert (status, headers["Content-Disposition"]) == (200, "attachment")
    assert body == (folder / "l2" / "0.4000" / "model.onnx").read_bytes()
    for path in ("files/original.onnx", "files/journal", "files/../frontier.json", "files/l2/0.4000/scores.json", "x"):
        assert get(server, path)[0] == 404
    status, body, headers = get(server, "")
    assert status == 200
    assert "connect-src 'self'" in body.decode()
    assert headers["X-Frame-Options"] == "DENY"
    assert "Content-Security-Policy" not in headers  # the page has its own, with the digests of its scripts


def test_the_report_and_the_page_show_the_same_points(folder: Path, tmp_path: Path) -> None:
    write_report([folder], tmp_path / "page.html")
    report, page = (tmp_path / "page.html").read_text(), frontier_page(folder).html
    for text in (report, page):
        data = json.loads(text.split('id="points">')[1].split("</script>")[0])
        assert [p["title"].split(",")[0] for p in data["points"]] == ["l2"] * 4
        assert data["links"] == ("files/" if text is page else None)
        point = data["points"][0]
        assert ["proof", point["certificate"][0][1]] == point["certificate"][0]
        assert all(0 < kept < channels for _, kept, channels in point["channels"])
        assert [f["path"] for f in point["files"]] == [
            f"l2/0.7000/{n}" for n in ("model.onnx", "plan.json", "point.json")
        ]
    assert 'id="done"' in page
    assert 'id="done"' not in report


def test_damaged_points_are_named_and_the_others_shown(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / "l2" / "0.7000" / "plan.json").write_text("{")
    (copy / "l2" / "0.4000" / "point.json").unlink()
    page = frontier_page(copy)
    assert page.points == 4
    assert any("0.7000/plan.json" in p for p in page.problems)
    assert any("0.4000/point.json: the file is missing" in p for p in page.problems)
    assert "l2/0.4000/point.json" not in page.files


def test_the_command_serves_until_it_is_told_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def serve(self: Server) -> None:
        seen.append(self.url)
        self.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve", serve)
    result = CommandLine("explore", folder, "--no-browser", "--json").ok()
    assert json.loads(result.stdout) == {"frontier": str(folder), "points": 4, "problems": []}
    assert seen[0] in result.stderr


def test_folders_without_a_frontier_and_options_of_models_are_refused(folder: Path, tmp_path: Path) -> None:
    assert "holds no frontier" in CommandLine("explore", tmp_path, "--no-browser").fails()
    says = CommandLine("explore", folder, "--no-browser", "-o", tmp_path / "plan.json").fails()
    assert "--output is for a model" in says
    assert "--criterion is for a model" in CommandLine("explore", folder, "-c", "l2").fails()


@pytest.mark.parametrize(
    "path", ["../model.onnx", "/etc/passwd", "model.onnx", "l2/../../x/model.onnx", "l2\\x\\m.onnx"]
)
def test_paths_that_leave_the_folder_are_refused(folder: Path, tmp_path: Path, path: str) -> None:
    found = load_frontier(folder)
    points = (replace(found.points[0], path=path), *found.points[1:])
    (tmp_path / "frontier.json").write_text(json.dumps(replace(found, points=points).as_dict()))
    with pytest.raises(OnnxPruneError, match="point 0 is not in a subfolder"):
        frontier_page(tmp_path)


def test_a_frontier_without_points_is_refused(folder: Path, tmp_path: Path) -> None:
    document = {**load_frontier(folder).as_dict(), "points": []}
    (tmp_path / "frontier.json").write_text(json.dumps(document))
    assert "there are no points" in CommandLine("explore", tmp_path, "--no-browser").fails()
