"""A command of the user as runtime: it gets the file of a model and prints the time of a run.

    command:trtexec --onnx={model} --warmUp=200
    command:./on_phone.sh {models}

The command runs without a shell. Placeholders: {model} (one file) or {models} (files of several models, as arguments of
their own), {inputs} (an .npz with the inputs of {model}), {threads}, {batch}, {runs}.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.atomic_files import atomic
from onnxprune._utils.output.formatting import shortened
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.timing import Latency, quiet_rounds
from onnxprune.ir.model import Model
from onnxprune.latency.runtimes._block_probe import measured_block
from onnxprune.latency.runtimes._command_output import check_pattern, check_unit, read_times
from onnxprune.latency.runtimes._files import write_model
from onnxprune.latency.runtimes._protocol import Inputs, Measurement, MeasurementStopped, RuntimeInfo
from onnxprune.latency.runtimes._refusals import OTHER, refusal
from onnxprune.latency.runtimes._registry import RUNTIMES

_log = logging.getLogger(__name__)

PLACEHOLDERS = ("model", "models", "inputs", "threads", "batch", "runs")
OPTIONS = (
    "pattern", "unit", "timeout", "retries", "rounds", "together", "block", "version", "device", "precision",
)  # fmt: skip
_PLACE = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_MOST_OUTPUT = 16 * 2**20  # bytes that a command may print
_POLL = 0.05
_LOST = 255  # exit status of ssh without a connection


@RUNTIMES.register
class CommandRuntime:
    """Command that measures models.

    Args:
        device: The command with its placeholders.
        options: "pattern" and "unit" of the number in the output; "timeout" in seconds and "retries" of a call;
            "rounds" in which all models are measured in turns; "together": models of a call with {models}; "block": the
            block size, instead of a probe; "version", "device" and "precision" for descriptions and caches.

    Raises:
        OnnxPruneError: A command without a model, an unknown placeholder, or an option that cannot be read.
    """

    name = "command"

    def __init__(self, device: str = "", options: Mapping[str, str] | None = None) -> None:
        self.command = device
        given = dict(options or {})
        for key in given:
            if key not in OPTIONS:
                raise unknown("option of a command", key, OPTIONS)
        self._options = given
        self._arguments = _split(device)
        places = {m[1] for a in self._arguments for m in _PLACE.finditer(a) if m[1]}
        for place in places - set(PLACEHOLDERS):
            raise OnnxPruneError(
                f"the command has an unknown placeholder {{{place}}}",
                fix=f"{', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}; write {{{{ for a brace",
            )
        if not places & {"model", "models"}:
            raise OnnxPruneError(
                "the command does not get the model", fix="command:trtexec --onnx={model}, or {models} for several"
            )
        if {"model", "models"} <= places or ("inputs" in places and "models" in places):
            raise OnnxPruneError("a command takes either {model} (and {inputs}) or {models}")
        self.together = _whole(given, "together", 16, 1) if "models" in places else 1
        self.timeout = _number(given, "timeout", 600.0)
        self.retries = _whole(given, "retries", 2, 0)
        self.rounds = _whole(given, "rounds", 3, 1)
        self._block = _whole(given, "block", 0, 0)
        self._pattern = check_pattern(given["pattern"]) if "pattern" in given else None
        self._unit = check_unit(given["unit"]) if "unit" in given else None
        self.sleep: Callable[[float], None] = time.sleep

    def describe(self) -> RuntimeInfo:
        """Return the command and the user's description of it."""
        return RuntimeInfo(
            self.name, self._options.get("version", ""), self._options.get("device", self.command),
            self._options.get("precision", "as the model"), {**self._options, "command": self.command},
        )  # fmt: skip

    def block_size(self) -> int:
        """Return the option "block", or the block size from measured convolutions."""
        return self._block or measured_block(self)

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> None:
        """Return None: a command has no times of layers."""

    def measure(
        self,
        models: Sequence[Model],
        inputs: Sequence[Inputs],
        *,
        threads: int,
        batch: int,
        runs: int = 30,
        warmup: int = 3,
        progress: Progress | None = None,
    ) -> Measurement:
        """Measure models in turns; see `Runtime.measure`. The command does its own warm-up."""
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            files = []
            for i, (model, feeds) in enumerate(zip(models, inputs, strict=True)):
                name = model.path.stem if model.path is not None else "model"
                path = Path(folder) / f"{i:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:60]}.onnx"
                write_model(model, path)
                arrays: dict[str, Any] = {k: np.asarray(v) for k, v in feeds.items()}
                with atomic(path.with_suffix(".npz")) as file:
                    np.savez(file, **arrays)
                files.append(path)
            values = {"threads": str(threads), "batch": str(batch), "runs": str(runs)}
            return self._measured(models, files, values, progress)

    def _measured(
        self, models: Sequence[Model], files: Sequence[Path], values: Mapping[str, str], progress: Progress | None
    ) -> Measurement:
        seen: list[list[float]] = [[] for _ in models]
        total = self.rounds * len(models)
        done = 0

        def one_round() -> list[float]:
            nonlocal done
            row: list[float] = []
            for start in range(0, len(files), self.together):
                some = files[start : start + self.together]
                times = self._call(some, models[start], values)
                for i, of_model in enumerate(times):
                    seen[start + i] += of_model
                    row.append(float(np.median(of_model)))
                done += len(some)
                if progress is not None:
                    progress(min(done, total), total)
            return row

        try:
            found = quiet_rounds(one_round, runs=self.rounds, patience=1, pause=self.sleep)
        except OnnxPruneError as err:
            latencies = [Latency.of(s) if s else None for s in seen]
            if all(latencies):
                _log.warning("the command failed in a later round, and the rounds before count: %s", err.what)
                least = min(len(s) for s in seen)
                return Measurement(tuple(la for la in latencies if la), self._ran, least, least)
            raise MeasurementStopped(err.what, latencies, where=err.where, fix=err.fix) from err
        if all(len(s) > 2 * found.seconds.shape[1] for s in seen):  # the command prints every run
            latencies_ = [Latency.of(s) for s in seen]
        else:
            latencies_ = found.latencies
        return Measurement(tuple(latencies_), self._ran, found.seconds.shape[1], int(found.quiet.sum()))

    @property
    def _ran(self) -> str:
        return self._options.get("device") or shortened(self.command, 60)

    # ---------------------------------------------------------------------------------------------------- one call

    def _call(self, files: Sequence[Path], model: Model, values: Mapping[str, str]) -> list[list[float]]:
        """Return the seconds of each model; a call that fails is repeated.

        Raises:
            OnnxPruneError: It failed every time, or printed no times.
        """
        arguments = self._filled(files, values)
        wait = 1.0
        for attempt in range(self.retries + 1):
            try:
                return read_times(self._output(arguments, model), files, self._pattern, self._unit)
            except _CallFailedError as err:
                if attempt == self.retries:
                    tried = f", {attempt + 1} times" if attempt else ""
                    raise _failed(err, tried, files, model) from err
                _log.info("%s; trying again in %g s", err, wait)
                self.sleep(wait)
                wait = min(2 * wait, 30.0)
            except OnnxPruneError as err:
                raise OnnxPruneError(err.what, where=err.where or _names(files, model), fix=err.fix) from err
        raise AssertionError("unreachable")

    def _filled(self, files: Sequence[Path], values: Mapping[str, str]) -> list[str]:
        """Return the arguments of a call."""
        table = {**values, "model": str(files[0]), "inputs": str(files[0].with_suffix(".npz"))}

        def fill(match: re.Match[str]) -> str:
            return match[0][0] if match[1] is None else table[match[1]]

        out: list[str] = []
        for argument in self._arguments:
            if "{models}" in argument and argument != "{models}":
                joined = ",".join(map(str, files))
                out.append(_PLACE.sub(fill, argument.replace("{models}", joined)))
            elif argument == "{models}":
                out += map(str, files)
            else:
                out.append(_PLACE.sub(fill, argument))
        return out

    def _output(self, arguments: Sequence[str], model: Model) -> str:
        """Return the standard output of a call.

        Raises:
            _CallFailedError: It ended with an error, hung, or printed without end.
            OnnxPruneError: It cannot be started.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise OnnxPruneError(
                    f"cannot start the command: {reason}", where=arguments[0],
                    fix="check the name and the PATH; the command runs without a shell, so pipes need sh -c '...'",
                ) from error  # fmt: skip
            try:
                problem = self._wait(process, out.fileno())
            except BaseException:
                _stop(process)
                raise
            if problem is not None:
                _stop(process)
            text, errors = _read(out), _read(err)
        if problem is not None:
            raise _CallFailedError(problem, errors or text)
        if process.returncode:
            lost = " (ssh has no connection)" if process.returncode == _LOST else ""
            end = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
            raise _CallFailedError(f"the command ended with {end}{lost}", errors or text)
        return text

    def _wait(self, process: subprocess.Popen[bytes], output: int) -> str | None:
        """Wait for the end of a call; return the reason to stop it instead, or None."""
        deadline = time.monotonic() + self.timeout
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
                return None
            if time.monotonic() > deadline:
                return f"the command did not end within {self.timeout:g} s"
            if os.fstat(output).st_size > _MOST_OUTPUT:
                return f"the command printed more than {_MOST_OUTPUT // 2**20} MB"


class _CallFailedError(Exception):
    """Failed call of a command, with the text that it printed."""

    def __init__(self, what: str, output: str) -> None:
        super().__init__(what)
        self.what = what
        self.output = output


def _failed(err: _CallFailedError, tried: str, files: Sequence[Path], model: Model) -> OnnxPruneError:
    """Return the error of a call that failed: with the node, if the command names one."""
    end = err.output.strip()[-2000:]
    found = refusal("the command", end, model) if end else None
    last = end.splitlines()[-1].strip()[:200] if end else ""
    where = found.where if found is not None and found.where and "node" in found.where else _names(files, model)
    advice = "raise --runtime-option timeout=SECONDS" if "did not end" in err.what else None
    if advice is None and found is not None and found.fix != OTHER:
        advice = found.fix
    return OnnxPruneError(
        f"{err.what}{tried}{f': {last}' if last else ''}", where=where,
        fix=advice or "run the command by hand on the model; --runtime-option retries=N repeats a call",
    )  # fmt: skip


def _names(files: Sequence[Path], model: Model) -> str:
    if len(files) == 1 and model.path is not None:
        return str(model.path)
    return ", ".join(f.name for f in files[:3])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and the processes that it started."""
    kill_group, kill = getattr(os, "killpg", None), getattr(signal, "SIGKILL", None)  # POSIX only
    if kill_group is not None and kill is not None:
        with contextlib.suppress(OSError):
            kill_group(process.pid, kill)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(5)


def _read(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    data: bytes = file.read(_MOST_OUTPUT)  # type: ignore[attr-defined]
    return data.decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _split(command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as err:
        raise OnnxPruneError(f"cannot read the command {command!r}: {err}", fix="check its quotes") from err
    if not arguments:
        raise OnnxPruneError("the runtime command has no command", fix="command:trtexec --onnx={model}")
    return arguments


def _number(options: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(options.get(key, default))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise OnnxPruneError(f"the runtime option {key} is a positive number, not {options[key]!r}")
    return value


def _whole(options: Mapping[str, str], key: str, default: int, least: int) -> int:
    try:
        value = int(options.get(key, default))
    except ValueError:
        value = least - 1
    if value < least:
        raise OnnxPruneError(f"the runtime option {key} is a whole number from {least}, not {options[key]!r}")
    return value
