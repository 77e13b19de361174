"""Preprocessing of a model: what its input and its metadata decide."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._inputs import input_of
from onnxprune.execution.data._preprocess import DEFAULT_SIZES, Preprocess, preset
from onnxprune.ir.model import PROVENANCE, Model

_MAX_CONFIG_BYTES = 2**20
_CONFIG = Format("model configuration", _MAX_CONFIG_BYTES)
_SIZED = ("stretch", "crop", "letterbox", "height")  # modes that use the size of the model's input


def resolved(how: Preprocess, model: Model, data: Data) -> Preprocess:
    """Return the preprocessing of image files with what the model decides; of other data as it is.

    Size and channels are those of the model's input where it fixes them. Without a preset, a resize mode, mean or std,
    the model's record of its calibration, Ultralytics metadata, and files of timm and transformers beside the model are
    read.

    Raises:
        OnnxPruneError: The model's input is not an image, or contradicts the preprocessing.
    """
    if not data.source.images:
        return how
    into = input_of(model)
    if len(into.shape) != 4:
        raise OnnxPruneError(
            f"the data {data.name!r} are images, the model's input {into.name!r} {list(into.shape)} is none",
            fix="use an .npz with an array for the input",
        )
    if not (how.preset or how.resize or how.mean or how.std):
        how = how.over(known_preprocess(model) or Preprocess())
    channels, height, width = into.image
    if data.size and not how.size:
        how = replace(how, size=data.size)
    if how.size and how.resize != "none":
        size = list(how.size)
    else:
        size = [height or 0, width or 0]
        if not all(size) and not how.size and how.resize in _SIZED:
            size = [] if not any(size) else size
    if size and not any(size):
        size = []
    if how.resize == "height" and size and not size[0]:
        size[0] = DEFAULT_SIZES["height"][0]
    mode = how.resize or ("stretch" if len(size) == 2 and all(size) else "none")
    if mode in ("stretch", "crop", "letterbox") and size and not all(size):
        raise OnnxPruneError(
            f"the size of the images is known in part: height {size[0] or '?'}, width {size[1] or '?'}",
            where=f"input {into.name!r} {list(into.shape)}",
            fix="set it with --size HEIGHTxWIDTH",
        )
    if mode == "stretch" and not size:
        raise OnnxPruneError(
            f"the model's input {into.name!r} {list(into.shape)} does not fix the size of the images",
            fix="set it with --size HEIGHTxWIDTH",
        )
    color = how.color or {1: "gray", 4: "rgba"}.get(channels or 3, "rgb")
    if channels not in (None, len(_CHANNELS[color])):
        if how.preset and channels == 1:
            color = "gray"
        else:
            raise OnnxPruneError(
                f"{color} images have {len(_CHANNELS[color])} channels, the model's input {into.name!r} {channels}",
                fix="leave out --color, or use data of arrays",
            )
    mean, std = how.mean, how.std
    if color == "gray" and how.preset:  # presets are of three colours
        mean, std = ((sum(v) / len(v),) if v else () for v in (mean, std))
    return replace(how, resize=mode, size=tuple(size), color=color, mean=mean, std=std)


_CHANNELS = {"rgb": "rgb", "bgr": "bgr", "gray": "g", "rgba": "rgba"}


def known_preprocess(model: Model) -> Preprocess | None:
    """Return the preprocessing that a model's metadata or the files beside it state; None if they state none."""
    metadata = model.metadata
    if (found := _recorded(literal(metadata.get(f"{PROVENANCE}.preprocess", "")))) is not None:
        return found
    if "ultralytics" in (metadata.get("description", "") + metadata.get("author", "")).lower():
        return _ultralytics(metadata)
    folder = model.path.parent if model.path is not None else None
    if folder is None:
        return None
    for name, read in (("preprocessor_config.json", _transformers), ("config.json", _timm)):
        config = _json(folder / name)
        if isinstance(config, dict) and (found := read(config)) is not None:
            return replace(found, preset=name)
    return None


def _recorded(values: Any) -> Preprocess | None:
    """Return the preprocessing that recovery or training recorded in the model."""
    if not isinstance(values, dict):
        return None
    known: dict[str, Any] = {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Preprocess(**known)
    except (TypeError, OnnxPruneError):  # of another version, or changed by hand
        return None


def _ultralytics(metadata: Mapping[str, str]) -> Preprocess:
    size = literal(metadata.get("imgsz", ""))
    size = (size, size) if isinstance(size, int) else size
    sized = tuple(int(v) for v in size) if isinstance(size, list | tuple) and len(size) == 2 else ()
    base = preset("yolo")
    if metadata.get("task") == "classify":
        base = Preprocess(scale=255.0, resize="crop", interpolation="bilinear")
    return replace(base, size=sized, preset="ultralytics metadata")


def _transformers(config: dict[str, Any]) -> Preprocess | None:
    """Read the image processor of transformers."""
    if "image_mean" not in config and "do_rescale" not in config and "size" not in config:
        return None
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    normal = bool(config.get("do_normalize", True))
    mean, std = ((_numbers(config.get(k)) if normal else ()) for k in ("image_mean", "image_std"))
    size, crop = config.get("size"), config.get("crop_size")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    how = Preprocess(
        mean, std, scale=1 / factor if isinstance(factor, float | int) and factor else None,
        interpolation={0: "nearest", 2: "bilinear", 3: "bicubic"}.get(config.get("resample", 2), "bicubic"),
    )  # fmt: skip
    if isinstance(crop, dict) and config.get("do_center_crop") and isinstance(size, dict):
        edge = size.get("shortest_edge") or size.get("height") or crop.get("height")
        own = (int(crop["height"]), int(crop["width"]))
        return replace(how, resize="crop", size=own, crop=min(1.0, own[0] / int(edge or own[0])))
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return replace(how, resize="stretch", size=(int(size["height"]), int(size["width"])))
    return how


def _timm(config: dict[str, Any]) -> Preprocess | None:
    """Read the pretrained configuration of timm."""
    own = config.get("pretrained_cfg")
    if not isinstance(own, dict) or "mean" not in own:
        return None
    size = own.get("input_size")
    crop = own.get("crop_pct", 1.0)
    named = own.get("interpolation", "bilinear")
    return Preprocess(
        _numbers(own.get("mean")), _numbers(own.get("std")), resize="stretch" if own.get("crop_mode") == "squash" else
        "crop", size=(int(size[1]), int(size[2])) if isinstance(size, list) and len(size) == 3 else (),
        crop=float(crop) if isinstance(crop, float | int) and 0 < crop <= 1 else 1.0,
        interpolation=named if named in ("bilinear", "bicubic", "nearest") else "bicubic",
    )  # fmt: skip


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values) if isinstance(values, list) else ()


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    with contextlib.suppress(OnnxPruneError):  # a file of another tool that is no JSON
        return _CONFIG.load(path)
    return None


def literal(text: str) -> Any:
    """Return the Python or JSON literal of a metadata entry; None if it is none."""
    if len(text) > _MAX_CONFIG_BYTES:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def beside(model: Model, name: str) -> Any:
    """Return the JSON of a file beside the model; None if there is none."""
    return _json(model.path.parent / name) if model.path is not None else None
