"""What several commands do between reading options and showing a result: one function for each stage."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli._options import SYNTHETIC
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.criteria.scoring import Scores
    from onnxprune.execution.calibration import Calibration
    from onnxprune.ir.model import Model
    from onnxprune.latency.speedup import Speedup
    from onnxprune.pipeline import Compiled
    from onnxprune.planning.constraints import Constraints
    from onnxprune.planning.curves import Curves
    from onnxprune.planning.targets import LatencyPredictor, Target
    from onnxprune.plans import Plan
    from onnxprune.recovery.recover import Recovered


def load_model(path: Path) -> Model:
    from onnxprune.ir.model import load

    return load(path)


def analysis_of(model: Model, o: dict[str, Any]) -> Analysis:
    """The analysis that --attention and, where the command has it, --include-inexact ask for."""
    from onnxprune.pipeline import analyze

    return analyze(model, attention=o["attention"], include_inexact=o.get("include_inexact", False))


def params_of(pairs: tuple[str, ...]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--param takes NAME=VALUE, not {pair!r}")
        out[name] = value
        for kind in (int, float):
            with suppress(ValueError):
                out[name] = kind(value)
                break
    return out


def constraints_of(o: dict[str, Any]) -> Constraints:
    from onnxprune.execution.sessions import kernel_block
    from onnxprune.planning.constraints import Constraints, load_overrides

    round_to: int | str = o["round_to"]
    if round_to == "auto" and o["device"] == "cuda":
        round_to = kernel_block("cuda")
    if round_to != "auto" and not isinstance(round_to, int):
        try:
            round_to = int(round_to)
        except ValueError as err:
            raise click.UsageError(f"--round-to takes a number or auto, not {round_to!r}") from err
    if not 0 <= o["max_ratio"] < 1:
        raise OnnxPruneError(f"--max-ratio is a share removed, in [0, 1); got {o['max_ratio']:g}")
    overrides = load_overrides(o["overrides"]) if o["overrides"] else {}
    return Constraints(
        round_to, o["min_channels"], o["max_ratio"], o["include"], o["exclude"], o["protect"], overrides, o["only"]
    )


def target_of(o: dict[str, Any]) -> Target | None:
    from onnxprune.planning.constraints import check_ratio
    from onnxprune.planning.targets import Target

    curves, thresholds = o["curves_file"] is not None, [o["min_group_accuracy"], o["max_loss"]].count(None) < 2
    if thresholds and not curves:
        raise click.UsageError("--min-group-accuracy and --max-loss need --curves")
    if curves and o["ratio"] is not None:
        raise click.UsageError("--ratio takes the same from every group, --curves do not: give one of them")
    if curves and not thresholds and o["target"] is None:
        raise click.UsageError("--curves need --min-group-accuracy (or --max-loss), or a --target")
    if not curves and (o["target"] is None) == (o["ratio"] is None):
        raise click.UsageError("give either --ratio or --target (for example --target macs=0.5)")
    if o["steps"] is not None and (curves or o.get("scores_file")):
        raise click.UsageError("--steps score anew between steps, so --curves and --scores do not go with them")
    if o["ratio"] is not None:
        check_ratio(o["ratio"])
    return Target.parse(o["target"]) if o["target"] is not None else None


def scored(analysis: Analysis, o: dict[str, Any]) -> Scores:
    from onnxprune.cli._display import progress
    from onnxprune.criteria.scoring import score

    samples = calibration_of(o, analysis.source)
    with progress(f"scoring with {o['criterion']}", quiet=o.get("as_json", False)) as tick:
        params = o["params"] if "params" in o else params_of(o["param"])
        return score(analysis, o["criterion"], reduce=o["reduce"], calibration=samples, progress=tick, **params)


def calibration_of(o: dict[str, Any], model: Model) -> Calibration | None:
    """The samples for criteria that look at data, and for recovery; read once."""
    if o.get("samples") is not None or not o.get("data"):
        return o.get("samples")
    from onnxprune.execution.calibration import Calibration
    from onnxprune.execution.data import load_data

    if o["data"] == "none":
        from onnxprune.execution.synthetic_data import synthetic_data

        data = synthetic_data(model, o["images"] or SYNTHETIC)
        return Calibration(data, device=o["device"])
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    return Calibration(data, preprocess_of(o), device=o["device"])


def by_curves(o: dict[str, Any], curves: Curves | None) -> dict[str, Any]:
    """The options of scoring; what is not given is what the curves were made with."""
    if curves is None:
        return o
    given = click.get_current_context().get_parameter_source("criterion")
    if given is not click.core.ParameterSource.DEFAULT:
        return o
    name, reduce = curves.criterion.get("name"), curves.criterion.get("reduce")
    if not isinstance(name, str):
        raise OnnxPruneError("the curves do not say by which criterion they were made", fix="name it with -c")
    params = {k: v for k, v in curves.criterion.items() if k not in ("name", "reduce", "normalize")}
    own = params_of(o["param"])
    return {**o, "criterion": name, "reduce": o["reduce"] or reduce, "params": {**params, **own}}


def predictor_of(analysis: Analysis, target: Target | None, o: dict[str, Any]) -> LatencyPredictor | None:
    """A latency model, measured or found in the cache, where one is asked for."""
    if not (o["timed"] or o["allocator"] == "latency" or (target is not None and target.measure == "latency")):
        return None
    from onnxprune.cli._display import progress
    from onnxprune.latency.prediction import latency_model

    with progress("measuring latency", quiet=o["as_json"]) as tick:
        return latency_model(analysis, batch=o["batch"], threads=o["threads"], device=o["device"], progress=tick)


def planned(
    analysis: Analysis, target: Target | None, o: dict[str, Any]
) -> tuple[Plan, Scores | None, Curves | None, LatencyPredictor | None]:
    """The plan, and what it was made from (scores: None where they were made anew step by step)."""
    from onnxprune.cli._display import progress
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.pipeline import plan
    from onnxprune.planning.curves import load_curves
    from onnxprune.planning.iterative import plan_steps

    constraints = constraints_of(o)
    curves = load_curves(o["curves_file"]) if o["curves_file"] else None
    latency = predictor_of(analysis, target, o)
    common = {"ratio": o["ratio"], "allocator": o["allocator"], "normalize": o["normalize"], "constraints": constraints}
    if o["steps"] is not None:
        with progress(f"scoring with {o['criterion']}", quiet=o["as_json"]) as tick:
            made = plan_steps(
                analysis, o["criterion"], target, steps=o["steps"], schedule=o["schedule"], latency=latency,
                reduce=o["reduce"], calibration=calibration_of(o, analysis.source), progress=tick, **common,
                **params_of(o["param"]),
            )  # fmt: skip
        return made, None, None, latency
    given = o.get("scores_file")
    scores = load_scores(given, analysis) if given else scored(analysis, by_curves(o, curves))
    made = plan(
        scores,
        target,
        curves=curves,
        min_group_accuracy=o["min_group_accuracy"],
        max_loss=o["max_loss"],
        latency=latency,
        **common,
    )
    return made, scores, curves, latency


def speedup_of(
    analysis: Analysis, plan: Plan, pruned: Model | None, latency: LatencyPredictor | None, o: dict[str, Any]
) -> Speedup | None:
    """Predicted and measured latency, where there is a latency model."""
    if latency is None:
        return None
    from onnxprune.cli._display import progress
    from onnxprune.latency.speedup import measure_speedup
    from onnxprune.pipeline import compile_plan

    small = pruned or compile_plan(analysis.source, plan, analysis=analysis, check=False).model
    with progress("measuring", quiet=o["as_json"]) as tick:
        return measure_speedup(analysis, plan, small, latency, device=o["device"], runs=o["runs"], progress=tick)


def compiled(model: Model, plan: Plan, analysis: Analysis | None, o: dict[str, Any]) -> Compiled:
    from onnxprune.cli._display import progress
    from onnxprune.pipeline import compile_plan

    options: dict[str, Any] = {"tolerance": o["tolerance"]} if o["check"] else {}
    samples = calibration_of(o, model)
    if o["check"] and samples is not None and o["data"] != "none":
        options["feeds"] = samples.first(model)
    with progress("stripping and verifying", quiet=o["as_json"]):
        return compile_plan(model, plan, analysis=analysis, check=o["check"], **options)


def finish(
    done: Compiled, o: dict[str, Any], speedup: Speedup | None = None, recovered: Recovered | None = None
) -> None:
    from onnxprune.cli import _display
    from onnxprune.ir.model import save

    save(done.model, o["output"], external=o["external"])
    if o["as_json"]:
        document = _display.compiled_document(done, str(o["output"]), speedup)
        _display.emit_json(document if recovered is None else {**document, "recovery": recovered.as_dict()})
        return
    _display.compiled_table(done, f"{o['model'].name} -> {o['output']}", speedup)
    if recovered is not None:
        _display.recovered_table(recovered, "without training")


def numbers_of(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as err:
        raise click.UsageError(f"{option} takes numbers separated by commas, not {text!r}") from err


def preprocess_of(o: dict[str, Any]) -> Any:
    from onnxprune.execution.data import Preprocess

    return Preprocess(numbers_of(o["mean"], "--mean"), numbers_of(o["std"], "--std"), o["layout"])


def size_of(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    height, cross, width = text.partition("x")
    try:
        return int(height), int(width if cross else height)
    except ValueError as err:
        raise click.UsageError(f"--size takes HEIGHTxWIDTH, not {text!r}") from err
