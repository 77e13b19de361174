"""Export small random models of current families to ONNX, for tools/wild.py; run with an environment of its own.

    python tools/zoo_parts/wild_build.py FOLDER [--only 'yolo*']

Needs torch, torchvision, transformers and ultralytics, which onnxprune does not depend on. A model that its exporter
rejects is reported and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_VERBOSE", "false")

import torch
from torch import nn

Build = Callable[[Path], None]
SIDE = 160
DETECTORS = ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
TASKS = ("yolov8n-seg", "yolov8n-pose", "yolov8n-obb", "yolov8n-cls", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb",
         "yolo11n-cls", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb", "yolo26n-cls")  # fmt: skip


class Named(nn.Module):
    """A transformers model called with positional tensors; it returns the named outputs.

    Args:
        model: Model to call.
        inputs: Names of the tensors.
        outputs: Attributes of its result.
        fixed: Other arguments.
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], **fixed: Any) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs, self.fixed = model, inputs, outputs, fixed

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in order."""
        done = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.fixed)
        return tuple(getattr(done, name) for name in self.outputs)


def export(model: Named, examples: tuple[torch.Tensor, ...], axes: dict[str, dict[int, str]], path: Path) -> None:
    """Export with the exporter that the file's name ends in: `ts` (TorchScript) or `dyn` (dynamo)."""
    torch.manual_seed(0)
    for parameter in model.parameters():  # zero-initialised heads and norms would hide channels
        if parameter.dtype.is_floating_point and parameter.detach().abs().max() == 0:
            nn.init.normal_(parameter, std=0.02)
    model.eval()
    if path.stem.endswith("dyn"):
        dims = {n: dict.fromkeys(axes.get(n, {}), torch.export.Dim.DYNAMIC) for n in model.inputs}
        torch.onnx.export(
            model, examples, str(path), dynamo=True, dynamic_shapes=(tuple(dims.values()),), external_data=False,
            input_names=list(model.inputs), output_names=list(model.outputs), verbose=False,
        )  # fmt: skip
        return
    torch.onnx.export(
        model, examples, str(path), dynamo=False, dynamic_axes=axes, input_names=list(model.inputs),
        output_names=list(model.outputs), opset_version=17,
    )  # fmt: skip


def transformers_models() -> Iterator[tuple[str, Build]]:
    """Yield (name, builder) of small random transformers models."""
    import transformers as tf

    eager = {"attn_implementation": "eager"}
    image = torch.randn(2, 3, 64, 64)
    tokens = torch.randint(2, 90, (2, 7))
    states = torch.randn(2, 9, 32)
    batch = {0: "batch"}
    text = {0: "batch", 1: "sequence"}

    def segformer() -> tuple[Any, ...]:
        config = tf.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4], num_labels=5,
            decoder_hidden_size=32,
        )  # fmt: skip
        model = Named(tf.SegformerForSemanticSegmentation(config), ("pixel_values",), ("logits",))
        return model, (image,), {"pixel_values": {0: "batch", 2: "height", 3: "width"}}

    def whisper() -> Any:
        return tf.WhisperForConditionalGeneration(
            tf.WhisperConfig(
                d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, max_source_positions=50,
                max_target_positions=40, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **eager,
            )
        )  # fmt: skip

    def whisper_encoder() -> tuple[Any, ...]:
        model = Named(whisper().model.encoder, ("input_features",), ("last_hidden_state",))
        return model, (torch.randn(2, 16, 100),), {"input_features": batch}

    def whisper_decoder() -> tuple[Any, ...]:
        inputs = ("input_ids", "encoder_hidden_states")
        model = Named(whisper().model.decoder, inputs, ("last_hidden_state",), use_cache=False)
        return model, (tokens, torch.randn(2, 50, 32)), {"input_ids": text, "encoder_hidden_states": batch}

    def wav2vec2() -> tuple[Any, ...]:
        config = tf.Wav2Vec2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=30,
            conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 2), num_feat_extract_layers=3,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **eager,
        )  # fmt: skip
        model = Named(tf.Wav2Vec2ForCTC(config), ("input_values",), ("logits",))
        return model, (torch.randn(2, 1600),), {"input_values": {0: "batch", 1: "samples"}}

    def clip() -> tuple[Any, ...]:
        config = tf.CLIPConfig(
            text_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 98},
            vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "image_size": 64, "patch_size": 16}, projection_dim=24, **eager,
        )  # fmt: skip
        inputs = ("input_ids", "pixel_values", "attention_mask")
        model = Named(tf.CLIPModel(config), inputs, ("logits_per_image", "text_embeds", "image_embeds"))
        axes = {"input_ids": text, "pixel_values": {0: "images"}, "attention_mask": text}
        return model, (tokens, image, torch.ones_like(tokens)), axes

    def t5() -> Any:
        config = tf.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, decoder_start_token_id=0
        )  # fmt: skip
        return tf.T5ForConditionalGeneration(config)

    def t5_encoder() -> tuple[Any, ...]:
        model = Named(t5().encoder, ("input_ids", "attention_mask"), ("last_hidden_state",))
        return model, (tokens, torch.ones_like(tokens)), {"input_ids": text, "attention_mask": text}

    def t5_decoder() -> tuple[Any, ...]:
        inputs = ("input_ids", "encoder_hidden_states")
        model = Named(t5().decoder, inputs, ("last_hidden_state",), use_cache=False)
        axes = {"input_ids": text, "encoder_hidden_states": {0: "batch", 1: "source"}}
        return model, (tokens, states), axes

    def backbone(**more: Any) -> Any:
        return tf.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"], **more,
        )  # fmt: skip

    def detr() -> tuple[Any, ...]:
        config = tf.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone(), backbone=None,
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=10, num_labels=5, **eager,
        )  # fmt: skip
        model = Named(tf.DetrForObjectDetection(config), ("pixel_values",), ("logits", "pred_boxes"))
        return model, (image,), {"pixel_values": batch}

    def rtdetr() -> tuple[Any, ...]:
        config = tf.RTDetrConfig(
            backbone_config=tf.RTDetrResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
                out_features=["stage2", "stage3", "stage4"],
            ),
            encoder_in_channels=[32, 48, 64], encoder_hidden_dim=32, d_model=32, num_queries=10, decoder_layers=1,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
            feat_strides=[8, 16, 32], decoder_in_channels=[32, 32, 32], num_labels=5, anchor_image_size=[64, 64],
            **eager,
        )  # fmt: skip
        model = Named(tf.RTDetrForObjectDetection(config), ("pixel_values",), ("logits", "pred_boxes"))
        return model, (image,), {"pixel_values": batch}

    for make in (segformer, whisper_encoder, whisper_decoder, wav2vec2, clip, t5_encoder, t5_decoder, detr, rtdetr):
        for exporter in ("ts", "dyn"):
            yield f"{make.__name__}.{exporter}", lambda path, make=make: export(*make(), path)


def ultralytics_models() -> Iterator[tuple[str, Build]]:
    """Yield (name, builder) of Ultralytics models from their configuration, not trained."""

    def build(config: str, path: Path, **options: Any) -> None:
        import onnx
        from ultralytics import YOLO

        torch.manual_seed(0)
        half = options.pop("half", False)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            side = options.pop("imgsz", SIDE)
            made = YOLO(f"{config}.yaml").export(format="onnx", imgsz=side, simplify=False, opset=17, **options)
            if half:
                from onnxruntime.transformers.float16 import convert_float_to_float16

                onnx.save(convert_float_to_float16(onnx.load(made), keep_io_types=True), path)
            else:
                shutil.copy(made, path)

    for config in (*DETECTORS, *TASKS):
        yield f"{config}", lambda path, config=config: build(config, path)
    for config in ("yolov8n", "yolo11n", "yolo26n"):
        yield f"{config}.dynamic", lambda path, config=config: build(config, path, dynamic=True)
        yield f"{config}.half", lambda path, config=config: build(config, path, half=True)
        yield f"{config}.nms", lambda path, config=config: build(config, path, nms=True)


def main() -> int:
    """Build what is missing; return the number of models that were not exported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, build in (*transformers_models(), *ultralytics_models()):
        path = folder / f"{name}.onnx"
        if path.exists() or (arguments.only and not any(fnmatch.fnmatch(name, o) for o in arguments.only)):
            continue
        try:
            build(path)
            print(f"{name}: built", flush=True)
        except Exception as err:  # exporters raise exceptions of any kind
            path.unlink(missing_ok=True)
            failed += 1
            print(f"{name}: not exported: {type(err).__name__}: {' '.join(str(err).split())[:200]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
