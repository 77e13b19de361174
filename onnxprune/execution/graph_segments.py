"""Segments of a graph, so that the part before a cut is computed once.

A *cut* is a node index. Its live tensors are computed before it and read at or after it; a segment between two cuts
computes the live tensors of the second from those of the first. An `ActivationCursor` holds the live tensors of all
samples at one cut and advances.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.files.array_files import load_array, save_array
from onnxprune.analysis.shapes.shape_inference import Witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import is_finite
from onnxprune.execution.data import Feeds
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model
from onnxprune.ir.symbolic import Atom, Expr, atom_of, evaluate

MEMORY = 2 * 2**30  # bytes of live tensors held in memory; the others are stored in files


class Segments:
    """Cuts of a model's graph.

    Args:
        model: Model; its constants may change between segments, its nodes may not.
        witness: Shapes and types of its tensors.

    Attributes:
        outputs: Names of the graph outputs.
        producer_index: Tensor -> index of its producer; -1 for inputs.
    """

    def __init__(self, model: Model, witness: Witness) -> None:
        self.model, self.witness = model, witness
        graph = model.graph
        self.nodes: Sequence[gs.Node] = graph.nodes
        self.outputs = [t.name for t in graph.outputs]
        self._numbers: dict[Atom, int | None] | None = None  # None: those of the witness
        self._batch = next((s[0] for t in graph.inputs if (s := witness.shapes.get(t.name))), 1) or 1
        self.producer_index = {o.name: i for i, n in enumerate(self.nodes) for o in n.outputs if o.name}
        self.producer_index |= {t.name: -1 for t in graph.inputs}
        self._variables = {t.name: t for t in [*(o for n in self.nodes for o in n.outputs), *graph.inputs] if t.name}
        self.consumer_indices: dict[str, list[int]] = {}  # name -> indices of its consumers, ascending
        for i, n in enumerate(self.nodes):
            inside = [t for body in n.subgraphs(recursive=True) for m in body.nodes for t in m.inputs]
            inside += [t for body in n.subgraphs(recursive=True) for t in body.outputs]
            for t in [*n.inputs, *inside]:
                if not isinstance(t, gs.Constant) and t.name in self.producer_index and self.producer_index[t.name] < i:
                    self.consumer_indices.setdefault(t.name, []).append(i)

    def live(self, node_index: int) -> list[str]:
        """Return the live tensors of a cut: computed before `node_index` and read at or after it, or graph outputs."""
        crossing = {n for n, where in self.consumer_indices.items() if self.producer_index[n] < node_index <= where[-1]}
        crossing |= {n for n in self.outputs if self.producer_index[n] < node_index}
        return sorted(crossing, key=lambda n: (self.producer_index[n], n))

    def set_sizes(self, feeds: Feeds) -> None:
        """Estimate bytes at the largest size of some batches, instead of the witness's sizes."""
        if not self.witness.dims or not len(feeds):
            return
        some = [feeds[i][0] for i in {0, len(feeds) // 2, len(feeds) - 1}]
        feed = max(some, key=lambda f: sum(v.nbytes // max(1, len(v)) for v in f.values() if np.ndim(v)))
        known = {
            atom: n
            for atom, n in self.witness.numbers.items()
            if atom.kind in ("symbol", "opaque")  # values of functions follow from these
        }
        for name, values in feed.items():
            sizes = self.witness.symbolic(name) or ()
            if len(sizes) == np.ndim(values):
                known |= {atom_of(s): n for s, n in zip(sizes, values.shape, strict=True) if isinstance(s, Expr)}
        self._numbers = known
        self._batch = next((len(v) for v in feed.values() if np.ndim(v)), 1) or 1

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor at the present sizes; None if it is not known."""
        if name not in self.witness.sizes or self._numbers is None:
            return self.witness.shapes.get(name)
        sizes = [evaluate(n, self._numbers) for n in self.witness.sizes[name] if n is not None]
        return tuple(n or 0 for n in sizes) or self.witness.shapes.get(name)

    def bytes_of(self, names: Sequence[str]) -> int:
        """Return the bytes of tensors for one sample, at the present sizes (0 for shapes that are not known)."""
        dtypes, plain = self.witness.dtypes, np.dtype(np.float32)
        shapes = {n: shape for n in names if (shape := self.shape(n)) is not None}
        return sum(prod(shape) * dtypes.get(n, plain).itemsize for n, shape in shapes.items()) // self._batch

    def largest(self) -> int:
        """Return the bytes of the largest activation for one sample."""
        return max((self.bytes_of([o.name]) for n in self.nodes for o in n.outputs if o.name), default=1)

    def segment(self, start: int, stop: int, outputs: Sequence[str]) -> Model:
        """Return nodes [start, stop) as a model with the live tensors at `start` as inputs and `outputs` as outputs."""
        reads = [self._variables[n] for n in self.live(start)]
        model = self.model.part(self.nodes[start:stop], reads, [self._variables[n] for n in outputs])
        for t in [*model.graph.inputs, *model.graph.outputs]:
            t.dtype = self.witness.dtypes.get(t.name, t.dtype)
            t.shape = self.declared(t.name)
        return model

    def declared(self, name: str) -> list[int | str] | None:
        """Return a shape with a name for every size that is not the same for all inputs; None if it is unknown."""
        shape = self.witness.shapes.get(name)
        if shape is None:
            return None
        sizes = self.witness.symbolic(name) or ()
        return [n if isinstance(n, int) else f"{name}_{i}" for i, n in enumerate(sizes)]


class ActivationCursor:
    """Live tensors of all samples at one cut of a model. A context manager, because it may hold files.

    Args:
        segments: Segments of the model.
        feeds: Samples.
        device: "auto", "cpu" or "cuda".
        threads: Threads of onnxruntime; 0: its default.
        memory: Bytes of live tensors held in memory.
    """

    def __init__(
        self, segments: Segments, feeds: Feeds, *, device: str = "cpu", threads: int = 0, memory: int = MEMORY
    ) -> None:
        self.segments, self.feeds = segments, feeds
        self.device, self.threads = device, threads
        self.node_index = 0
        self._store = _ArrayStore(memory)
        self._held: list[dict[str, int]] | None = None  # per batch: tensor -> key in the store; None: the feeds

    def __enter__(self) -> ActivationCursor:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def __len__(self) -> int:
        return len(self.feeds)

    def samples(self, batch: int) -> range:
        """Return the sample numbers of a batch, in the order of the batches."""
        return self.feeds.span(batch)

    def advance(self, node_index: int) -> None:
        """Advance to a cut; tensors before it are discarded.

        Raises:
            OnnxPruneError: onnxruntime fails, or an activation is not finite.
        """
        if node_index <= self.node_index:
            return
        live = self.segments.live(node_index)
        new = [n for n in live if self.segments.producer_index[n] >= self.node_index]
        session = self._session(self.node_index, node_index, new) if new else None
        held = []
        for batch in range(len(self)):
            kept: dict[str, int] = {}
            if session is not None:
                values = self._run(session, batch, new)
                kept = {n: self._store.put(v) for n, v in zip(new, values, strict=True)}
            for n in live:
                if n not in kept:
                    kept[n] = self._held[batch][n] if self._held is not None else self._store.put(self._get(batch, n))
            if self._held is not None:
                for n, key in self._held[batch].items():
                    if n not in kept:
                        self._store.drop(key)
            held.append(kept)
        self._held, self.node_index = held, node_index

    def values(self, names: Sequence[str], *, model: Model | None = None) -> Iterator[dict[str, Array]]:
        """Yield tensors at or after the cut, batch by batch, without the copies that pad the last one.

        Args:
            names: Tensor names.
            model: Changed segment from this cut on; its outputs are the requested tensors after the cut, in this order.

        Raises:
            OnnxPruneError: See `advance`.
        """
        new = [n for n in names if self.segments.producer_index[n] >= self.node_index]
        session = None
        if new:
            stop = max(self.segments.producer_index[n] for n in new) + 1
            session = self._session(self.node_index, stop, new, model)
        for batch in range(len(self)):
            values = self._run(session, batch, new) if session is not None else []
            found = dict(zip(new, values, strict=True))
            real, length = self.feeds.real(batch), self.feeds.size(batch)
            out = {n: found[n] if n in found else self._get(batch, n) for n in names}
            yield {n: v[: len(v) // length * real] if real < length and v.ndim else v for n, v in out.items()}

    def _session(self, start: int, stop: int, names: Sequence[str], model: Model | None = None) -> Session:
        model = model or self.segments.segment(start, stop, names)
        return Session(model, device=self.device, threads=self.threads)

    def _run(self, session: Session, batch: int, names: Sequence[str]) -> list[Array]:
        values = session.run({n: self._get(batch, n) for n in session.inputs}, names)
        for name, value in zip(names, values, strict=True):
            if value.dtype.kind == "f" and not is_finite(value):
                node = self.segments.nodes[self.segments.producer_index[name]]
                raise OnnxPruneError(
                    f"the activation {name!r} is not finite on this data (batch {batch})",
                    where=f"{node.op} {node.name or name!r}",
                    fix="check the data and its scaling (--mean, --std); a float16 model may overflow",
                )
        return values

    def _get(self, batch: int, name: str) -> Array:
        if self._held is None:
            feed: Mapping[str, Array] = self.feeds[batch][0]
            return feed[name]
        return self._store.get(self._held[batch][name])


class _ArrayStore:
    """Arrays by key: in memory up to a limit, the others in files of a temporary folder."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._arrays: dict[int, Array] = {}
        self._used = self._next = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, array: Array) -> int:
        key, self._next = self._next, self._next + 1
        if self._used + array.nbytes <= self.memory:
            self._arrays[key] = array
            self._used += array.nbytes
        else:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            save_array(self._path(key), array)
        return key

    def get(self, key: int) -> Array:
        found = self._arrays.get(key)
        return load_array(self._path(key)) if found is None else found

    def drop(self, key: int) -> None:
        found = self._arrays.pop(key, None)
        if found is None:
            self._path(key).unlink()
        else:
            self._used -= found.nbytes

    def close(self) -> None:
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _path(self, key: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{key}.npy"
