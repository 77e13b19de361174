"""End to end through the command line, on the demo model that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from onnx import helper, numpy_helper

from onnxprune.cli import main
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze

TRAINING = ["--data", "digits:train", "--images", 200, "--epochs", 1, "--keep", "last"]
DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
FOLDED = DIGITS.with_name("digits_cnn_folded.onnx")
RECIPE = "unit-vs-weight"


line = CommandLine()
run, ok, fails = line.run, line.out, line.fails


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pruned")
    small, plan = folder / "small.onnx", folder / "plan.json"
    ok("prune", DIGITS, "-o", small, "--target", "macs=0.5", "--round-to", 16, "--plan", plan)
    return small, plan


def test_prune_reaches_the_target_and_the_file_runs(pruned: tuple[Path, Path]) -> None:
    import onnxruntime

    small, _ = pruned
    onnx.checker.check_model(str(small), full_check=True)
    session = onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        assert session.run(None, {"image": np.zeros((batch, 1, 8, 8), np.float32)})[0].shape == (batch, 10)
    macs = {p: json.loads(ok("inspect", p, "--json"))["macs"] for p in (DIGITS, small)}
    assert macs[small] / macs[DIGITS] == pytest.approx(0.5, abs=0.01)


def test_provenance_is_in_the_file(pruned: tuple[Path, Path]) -> None:
    props = {p.key: p.value for p in onnx.load(str(pruned[0])).metadata_props}
    assert props["onnxprune.source"] == load(DIGITS).fingerprint
    assert set(props) >= {"onnxprune.version", "onnxprune.plan"}


def test_steps_give_the_same_file_as_prune(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    scores, plan, small = tmp_path / "s.json", tmp_path / "p.json", tmp_path / "small.onnx"
    ok("score", DIGITS, "-c", "l2", "-o", scores)
    ok("plan", DIGITS, "--scores", scores, "--target", "macs=0.5", "-o", plan)
    ok("apply", DIGITS, plan, "-o", small)
    assert plan.read_bytes() == pruned[1].read_bytes()
    assert small.read_bytes() == pruned[0].read_bytes()


def test_verify_accepts_the_pruned_file_and_refuses_another(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    small, plan = pruned
    proof = json.loads(ok("verify", DIGITS, small, plan, "--json"))
    assert proof["max_relative"] <= 1e-4 < proof["effect"]
    real = json.loads(ok("verify", DIGITS, small, plan, "--data", "digits:train", "--images", 70, "--json"))
    assert real["inputs"] == "random and data"
    assert real["max_relative"] <= 1e-4
    model = onnx.load(str(small))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    assert "not the original's" in fails("verify", DIGITS, tmp_path / "other.onnx", plan, code=3)


def test_json_is_one_document_on_stdout_for_every_command(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    small, plan = pruned
    commands: list[list[object]] = [
        ["inspect", DIGITS],
        ["score", DIGITS, "-c", "dscore"],
        ["sensitivity", DIGITS, "--data", "digits", "--ratios", 0.5, "-o", tmp_path / "c.json"],
        ["plan", DIGITS, "--ratio", 0.3, "-o", tmp_path / "p.json"],
        ["apply", DIGITS, plan, "-o", tmp_path / "a.onnx"],
        ["prune", DIGITS, "--ratio", 0.3, "-o", tmp_path / "b.onnx"],
        [
            "frontier",
            DIGITS,
            "--data",
            "digits",
            "--images",
            40,
            "--points",
            1,
            "--least",
            0.5,
            "--criteria",
            "l2",
            "--no-latency",
            "-o",
            tmp_path / "frontier",
        ],
        ["sparsify", DIGITS, "--sparsity", 0.9, "-o", tmp_path / "z.onnx"],
        ["sweep", DIGITS, "--data", "digits", "--points", "0.5", "-o", tmp_path / "w.csv"],
        ["verify", DIGITS, small, plan],
        ["diff", DIGITS, small],
        ["report", DIGITS, small, plan, "--runs", 1, "-o", tmp_path / "r.html"],
        ["recover", DIGITS, small, plan, "--data", "digits", "--images", 40, "--rows", 300, "-o", tmp_path / "r.onnx"],
        ["retrain", small, *TRAINING, "-o", tmp_path / "t.onnx"],
        ["evaluate", small, "--data", "digits"],
        ["bench", DIGITS, small, "--runs", 3],
        ["run", RECIPE, "-o", tmp_path / "run", "--set", "sweep.points=[0.5]", "--set", "bench.runs=0"],
        ["run-passes", DIGITS, "fold_shapes", "-o", tmp_path / "f.onnx"],
        ["ops"],
        ["criteria"],
        ["passes"],
        ["demo", "-o", tmp_path / "d.onnx"],
    ]
    pages = {"explore"}  # serves until it is told to stop: test_explorer_server.py
    assert {c[0] for c in commands} == set(main.commands) - pages
    for command in commands:
        json.loads(ok(*command, "--json"))


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["plan", DIGITS, "--target", "macs=0.6", "--scope", "uniform"], "--scope is now --allocator"),
        (["plan", DIGITS, "--target", "macs=0.6", "--scope=uniform"], "--scope is now --allocator"),
        (["prune", DIGITS, "--target", "macs=0.6", "--scope", "uniform"], "--scope is now --allocator"),
        (["rewrite", DIGITS, "fold_shapes"], "rewrite is now run-passes"),
    ],
)
def test_an_old_name_works_as_the_new_one_and_is_noted(words: list[object], note: str, tmp_path: Path) -> None:
    assert line.ok(*words, "-o", tmp_path / "old").stderr.splitlines().count(note) == 1
    name, new = note.split(" is now ")
    result = line.ok(*(str(w).replace(name, new) for w in words), "-o", tmp_path / "new")
    assert "is now" not in result.stderr
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()


def test_old_names_of_thresholds_are_noted(tmp_path: Path) -> None:
    for command in (["plan", DIGITS], ["prune", DIGITS], ["sensitivity", DIGITS, "--data", "digits:test"]):
        result = run(*command, "--min-accuracy", "2", "-o", tmp_path / "x")
        assert "--min-accuracy is now --min-group-accuracy" in result.stderr
        assert result.exit_code != 0


def test_options_of_the_old_name_elsewhere_stay(tmp_path: Path) -> None:
    result = line.ok("sparsify", DIGITS, "--sparsity", 0.5, "--scope", "global", "-o", tmp_path / "z.onnx")
    assert "is now" not in result.stderr


def test_old_names_are_not_in_the_help() -> None:
    for command in ("plan", "prune", "sensitivity"):
        assert not {"--scope", "--min-accuracy"} & set(ok(command, "--help").split())
    assert "rewrite" not in main.commands


def test_tables_fit_80_columns(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    small, _ = pruned
    for command in (
        ["inspect", DIGITS],
        ["score", DIGITS],
        ["plan", DIGITS, "--ratio", 0.3, "-o", tmp_path / "p.json"],
        ["bench", DIGITS, small, "--runs", 3],
        ["retrain", small, *TRAINING, "-o", tmp_path / "t.onnx"],
        ["evaluate", small, "--data", "digits"],
        ["ops"],
        ["criteria"],
        ["demo", "-o", tmp_path / "d.onnx"],
        ["prune", "--help"],
        ["retrain", "--help"],
    ):
        lines = [line for line in ok(*command).splitlines() if str(tmp_path) not in line]  # a user's path may be long
        assert max(map(len, lines)) <= 80, command


def test_evaluate_counts_what_numpy_counts(tmp_path: Path) -> None:
    import onnxruntime

    from onnxprune.execution.data import load_data

    data = load_data("digits:test")
    session = onnxruntime.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": data.x})[0]
    top1 = float((logits.argmax(1) == data.y).mean())
    assert json.loads(ok("evaluate", DIGITS, "--data", "digits", "--json"))["top1"] == pytest.approx(top1, abs=1e-12)
    np.savez(tmp_path / "d.npz", x=data.x, y=data.y)
    again = json.loads(ok("evaluate", DIGITS, "--data", tmp_path / "d.npz", "--json", "--batch", 7))
    assert again["top1"] == pytest.approx(top1, abs=1e-12)


def test_images_subset_is_even_over_classes() -> None:
    from onnxprune.execution.data import load_data

    counts = np.bincount(load_data("digits:train", images=100).y)
    assert counts.tolist() == [10] * 10


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--ratio", "1.0"], "in [0, 1)"),
        (["--ratio", "-0.1"], "in [0, 1)"),
        (["--ratio", "nan"], "in [0, 1)"),
        (["--target", "macs=0.0001"], "cannot be reached"),
        (["--target", "macs=1.5"], "in (0, 1]"),
        (["--target", "flaps=0.5"], "cannot read the target"),
        (["--ratio", "0.3", "-c", "dscor"], "did you mean 'dscore'"),
        (["--ratio", "0.3", "--exclude", "nosuchgroup"], "unknown group"),
        (["--ratio", "0.3", "--protect", "frist"], "did you mean 'first'"),
        (["--ratio", "0.3", "-p", "x=1"], "no parameter 'x'"),
        (["--ratio", "0.3", "--reduce", "median"], "unknown reduction"),
        (["--ratio", "0.3", "--normalize", "median"], "unknown normalization"),
        (["--ratio", "0.3", "--max-ratio", "1"], "--max-ratio"),
        (["--ratio", "0.3", "--round-to", "0"], "--round-to"),
        (["--ratio", "0.3", "--overrides", "missing.toml"], "cannot read"),
        (["--ratio", "0.3", "--tolerance", "1e-30"], "differs from the masked original"),
    ],
)
def test_bad_options_give_one_error_and_no_file(args: list[str], says: str, tmp_path: Path) -> None:
    code = 3 if "--tolerance" in args else 1
    assert says in fails("prune", DIGITS, "-o", tmp_path / "x.onnx", *args, code=code)
    assert list(tmp_path.iterdir()) == []


def test_bn_scale_on_a_folded_model_names_the_way_out(tmp_path: Path) -> None:
    assert "insert_batchnorm" in fails("prune", FOLDED, "-o", tmp_path / "x.onnx", "-c", "bn_scale", "--ratio", 0.3)


def _spoil(kind: str, path: Path) -> None:
    whole = DIGITS.read_bytes()
    model = onnx.load(str(DIGITS))
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "invalid":
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, str(path))
    elif kind in ("nan in a weight", "nan in a bias"):
        if kind == "nan in a bias":
            tensor = next(t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == 1)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(path))
    elif kind == "valueless":
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims)))
        model.graph.initializer.remove(tensor)
        onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such file"),
        ("text", "not an ONNX model"),
        ("empty", "is empty"),
        ("truncated", "not an ONNX model"),
        ("invalid", "checker rejects"),
        ("nan in a weight", "NaN"),
        ("nan in a bias", "NaN"),
        ("valueless", "graph input without a value"),
    ],
)
def test_bad_models_give_one_error_and_no_file(kind: str, says: str, tmp_path: Path) -> None:
    source = tmp_path / "bad.onnx"
    _spoil(kind, source)
    before = sorted(tmp_path.iterdir())
    assert says in fails("prune", source, "-o", tmp_path / "x.onnx", "--ratio", 0.3)
    assert sorted(tmp_path.iterdir()) == before


def test_output_that_is_the_input_is_refused_and_the_input_survives(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(DIGITS.read_bytes())
    (tmp_path / "link.onnx").symlink_to(source)
    for output in (source, tmp_path / "." / "m.onnx", tmp_path / "link.onnx"):
        assert "is the input file" in fails("prune", source, "-o", output, "--ratio", 0.3)
    assert source.read_bytes() == DIGITS.read_bytes()


def test_unwritable_outputs_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in fails("prune", DIGITS, "-o", tmp_path / "no" / "x.onnx", "--ratio", 0.3)
    assert "is a folder" in fails("prune", DIGITS, "-o", tmp_path, "--ratio", 0.3)


def test_a_plan_for_another_model_is_refused(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    assert "another model" in fails("apply", FOLDED, pruned[1], "-o", tmp_path / "x.onnx")


def test_usage_errors_exit_2(tmp_path: Path) -> None:
    for args in ([], ["--ratio", "0.3", "--target", "macs=0.5"], ["--ratio", "x"], ["--ratio", "0.3", "-p", "x"]):
        fails("prune", DIGITS, "-o", tmp_path / "x.onnx", *args, code=2)


def test_overrides_and_presets_reach_the_plan(tmp_path: Path) -> None:
    names = [g.name for g in analyze(load(DIGITS)).groups]
    first, other = names[0], names[2]
    toml = tmp_path / "o.toml"
    toml.write_text(f'"{other}" = {{ channels = 3 }}\n')
    ok("plan", DIGITS, "--ratio", 0.5, "--overrides", toml, "--protect", "first", "-o", tmp_path / "p.json")
    groups = json.loads((tmp_path / "p.json").read_text())["groups"]
    assert first not in groups
    assert groups[other]["channels"] - len(groups[other]["removed"]) == 3


def test_external_data_can_be_chosen(tmp_path: Path) -> None:
    ok("prune", DIGITS, "-o", tmp_path / "x.onnx", "--ratio", 0.3, "--external-data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]
    assert json.loads(ok("evaluate", tmp_path / "x.onnx", "--data", "digits", "--json"))["images"] > 0


def test_module_and_exit_status_in_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "onnxprune", "inspect", str(tmp_path / "missing.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such file")


def test_help_loads_none_of_the_heavy_libraries() -> None:
    code = "\n".join(
        [
            "import sys",
            "from onnxprune.cli import main",
            "try: main(['--help'])",
            "except SystemExit: pass",
            "bad = {'torch', 'onnxruntime', 'sklearn', 'scipy', 'onnx', 'numpy'} & set(sys.modules)",
            "sys.exit(str(bad) if bad else 0)",
        ]
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
