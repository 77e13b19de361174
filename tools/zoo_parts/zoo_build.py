"""Build the models of the zoo: seeded random weights that make proofs meaningful, then the library's ONNX export.

    python tools/zoo_parts/zoo_build.py NAME_OR_PATTERN ... --out FOLDER      # FOLDER/NAME/model.onnx
    python tools/zoo_parts/zoo_build.py --list                                # what there is

`tools/zoo.py --build` does the same and then measures each model. Proofs on freshly initialised networks show little:
BatchNorms do nothing, layer scales and last layers are zero, so a wrong channel would have no effect. Here running
statistics are those of a random batch, jittered, and tensors of all zeros or ones become random.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from structures import tests_module
from zoo_parts.zoo_catalogue import Entry, catalogue, chosen

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 2  # of the example input: the dynamo exporter takes a batch of 1 for a constant
SIDE = 96  # of images, where the architecture allows
OPSET = {"ts": 17, "dyn": 20}

Inputs = tuple[Any, ...]


def build(entry: Entry, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Build one model in a folder and return its description.

    Returns:
        input: shapes of the example inputs; parameters; seconds.

    Raises:
        Exception: whatever the library or its exporter raises.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    if entry.library == "light":
        shapes = _light(entry.architecture, path)
    elif entry.library == "keras":
        shapes = _keras(entry.architecture, entry.exporter, path, seed)
    else:
        shapes = _torch(entry, path, seed)
    return {"input": shapes, "build_s": time.perf_counter() - start}


# ------------------------------------------------------------------------------------------------------- PyTorch


def _torch(entry: Entry, path: Path, seed: int) -> list[list[int]]:
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    makers = {"timm": _timm, "transformers": _transformer, "flow": _flow, "detection": _detection}
    model, inputs = makers.get(entry.library, _vision)(entry)
    model.eval()
    randomise(model, inputs, seed)
    with torch.no_grad():
        model(*inputs)
    dynamic = entry.library != "detection"
    if entry.exporter == "ts":
        _export_script(model, inputs, path, dynamic)
    else:
        _export_dynamo(model, inputs, path, dynamic)
    flat = [t for i in inputs for t in (i if isinstance(i, list) else [i])]
    return [list(t.shape) for t in flat]


def randomise(model: nn.Module, inputs: Inputs, seed: int) -> None:
    """Make equal weights random and BatchNorm's statistics those of a random batch, with a jitter."""
    import torch
    from torch import nn

    rng = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.empty(t.shape).uniform_(low, high, generator=rng).to(t.dtype))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() < 2 or not p.is_floating_point() or not bool((p == p.flatten()[0]).all()):
                continue
            first = float(p.flatten()[0])
            if first == 0 and p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=rng) / p[0].numel() ** 0.5)  # a zero-initialised layer
            elif abs(first) < 0.5:
                uniform(p, -0.1, 0.3)  # biases of zero, layer scales of 1e-6
            else:
                uniform(p, *sorted((0.5 * first, 1.5 * first)))  # detectors start with biases below zero
        for m in norms:
            m.momentum = 1.0
            m.train(m.running_mean is not None)
        with contextlib.suppress(ValueError):  # one value per channel: no statistics over a batch
            model(*inputs)
        for m in norms:
            m.eval()
            if m.running_mean is None or m.running_var is None:
                continue
            spread = m.running_var.clamp(min=1e-4).sqrt()
            m.running_mean.add_(torch.randn(m.running_mean.shape, generator=rng) * 0.1 * spread)
            m.running_var.clamp_(min=1e-4)
            m.running_var.mul_(torch.empty(m.running_var.shape).uniform_(0.8, 1.25, generator=rng))


def _vision(entry: Entry) -> tuple[nn.Module, Inputs]:
    import torch
    import torchvision

    kwargs: dict[str, Any] = {"weights": None}
    if entry.architecture in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": False}
    if "deeplab" in entry.architecture or "fcn_" in entry.architecture or "lraspp" in entry.architecture:
        kwargs["weights_backbone"] = None
    model = torchvision.models.get_model(entry.architecture, **kwargs)
    if entry.library == "video":
        side, frames = (224, 16) if "mvit" in entry.architecture or entry.architecture == "s3d" else (64, 8)
        return model, (torch.randn(BATCH, 3, frames, side, side),)
    return _first(model), (torch.randn(BATCH, 3, entry.size, entry.size),)


def _flow(entry: Entry) -> tuple[nn.Module, Inputs]:
    import torch
    import torchvision
    from torch import nn

    class LastFlow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raft = torchvision.models.get_model(entry.architecture, weights=None)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            flow: Tensor = self.raft(first, second, num_flow_updates=2)[-1]
            return flow

    return LastFlow(), tuple(torch.rand(BATCH, 3, 128, 128) * 2 - 1 for _ in range(2))


def _detection(entry: Entry) -> tuple[nn.Module, Inputs]:
    import torch
    import torchvision

    size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(entry.architecture, 160)
    kwargs = {} if entry.architecture.startswith("ssd") else {"min_size": size, "max_size": size}
    model = torchvision.models.get_model(entry.architecture, weights=None, weights_backbone=None, **kwargs)
    return model, ([torch.rand(3, size, size)],)


def _timm(entry: Entry) -> tuple[nn.Module, Inputs]:
    import timm
    import torch

    # Traced, the fused attention of some models gets a tensor where it wants a flag; it is exported in parts anyway.
    timm.layers.set_fused_attn(entry.exporter != "ts")
    model = timm.create_model(entry.architecture, pretrained=False, **entry.options)
    config = model.pretrained_cfg
    _, native, _ = config["input_size"]
    sides = [native] if config.get("fixed_input_size") else [entry.size or SIDE, 128, 192, native]
    for side in sides:
        inputs = (torch.randn(BATCH, 3, side, side),)
        try:
            with torch.no_grad():
                model.eval()(*inputs)
        except Exception:
            if side == native:
                raise
            continue
        return model, inputs
    raise AssertionError("unreachable")


def _transformer(entry: Entry) -> tuple[nn.Module, Inputs]:
    import torch
    import transformers
    from torch import nn

    kind, config, inputs = _transformer_config(entry.architecture)
    config._attn_implementation = "eager"
    inner = getattr(transformers, kind)(config)
    known = inspect.signature(inner.forward).parameters

    class Hidden(nn.Module):
        """Positional tensor in, last hidden state out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def forward(self, x: Tensor) -> Tensor:
            extra: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
            if x.dtype == torch.int64:
                extra["attention_mask"] = torch.ones_like(x)  # without one, packed sequences are looked for
            hidden: Tensor = self.model(x, **extra)[0]
            return hidden

    torch.manual_seed(0)
    return Hidden(), inputs


def _transformer_config(name: str) -> tuple[str, Any, Inputs]:
    """(model class, small config, inputs): two layers, 64 wide, four heads (two of keys and values if they differ)."""
    import torch
    import transformers as t

    tokens = (torch.randint(5, 200, (BATCH, 16)),)
    image = (torch.randn(BATCH, 3, 64, 64),)
    bert = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 160, "max_position_embeddings": 40}  # fmt: skip
    vit = {k: bert[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    vit |= {"image_size": 64, "patch_size": 16}
    llama = {**bert, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    mobile = {**bert, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    stages = {"depths": [1, 1, 2, 1], "image_size": 64}
    deberta = {**bert, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
    configs: dict[str, tuple[str, Any, Inputs]] = {
        "bert": ("BertModel", t.BertConfig(**bert), tokens),
        "roberta": ("RobertaModel", t.RobertaConfig(**bert), tokens),
        "xlm_roberta": ("XLMRobertaModel", t.XLMRobertaConfig(**bert), tokens),
        "electra": ("ElectraModel", t.ElectraConfig(**bert, embedding_size=32), tokens),
        "albert": ("AlbertModel", t.AlbertConfig(**bert, embedding_size=32), tokens),
        "mpnet": ("MPNetModel", t.MPNetConfig(**bert), tokens),
        "mobilebert": ("MobileBertModel", t.MobileBertConfig(**mobile), tokens),
        "deberta_v2": ("DebertaV2Model", t.DebertaV2Config(**deberta), tokens),
        "distilbert": (
            "DistilBertModel",
            t.DistilBertConfig(vocab_size=200, dim=64, n_layers=2, n_heads=4, hidden_dim=160,
                               max_position_embeddings=40),
            tokens,
        ),
        "gpt2": ("GPT2Model", t.GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=4, n_positions=40), tokens),
        "gpt_neox": ("GPTNeoXModel", t.GPTNeoXConfig(**bert), tokens),
        "opt": ("OPTModel", t.OPTConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, ffn_dim=160,
                                        num_attention_heads=4, max_position_embeddings=40,
                                        word_embed_proj_dim=64), tokens),
        "bloom": ("BloomModel", t.BloomConfig(vocab_size=200, hidden_size=64, n_layer=2, n_head=4), tokens),
        "llama": ("LlamaModel", t.LlamaConfig(**llama), tokens),
        "mistral": ("MistralModel", t.MistralConfig(**llama), tokens),
        "qwen2": ("Qwen2Model", t.Qwen2Config(**llama), tokens),
        "gemma": ("GemmaModel", t.GemmaConfig(**llama), tokens),
        "t5_encoder": ("T5EncoderModel", t.T5Config(vocab_size=200, d_model=64, d_kv=16, d_ff=160, num_layers=2,
                                                    num_heads=4), tokens),
        "vit": ("ViTModel", t.ViTConfig(**vit), image),
        "deit": ("DeiTModel", t.DeiTConfig(**vit), image),
        "beit": ("BeitModel", t.BeitConfig(**vit), image),
        "dinov2": ("Dinov2Model", t.Dinov2Config(**{k: v for k, v in vit.items() if k != "intermediate_size"}), image),
        "clip_vision": ("CLIPVisionModel", t.CLIPVisionConfig(**vit), image),
        "clip_text": ("CLIPTextModel", t.CLIPTextConfig(**bert), tokens),
        "swin": ("SwinModel", t.SwinConfig(embed_dim=24, num_heads=[1, 2, 4, 8], window_size=2, patch_size=4,
                                           **stages), image),
        "segformer": ("SegformerModel", t.SegformerConfig(hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1]), image),
        "convnextv2": ("ConvNextV2Model", t.ConvNextV2Config(hidden_sizes=[16, 24, 32, 48], **stages), image),
        "whisper_encoder": (
            "WhisperEncoder",
            t.WhisperConfig(vocab_size=200, d_model=64, encoder_layers=2, encoder_attention_heads=4,
                            encoder_ffn_dim=160, num_mel_bins=40, max_source_positions=20, pad_token_id=0,
                            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
            (torch.randn(BATCH, 40, 40),),
        ),
    }  # fmt: skip
    found = configs[name]
    if name == "whisper_encoder":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        t.WhisperEncoder = WhisperEncoder
    return found


def _export_script(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    import torch

    names = [f"input{i}" for i in range(len(inputs))] if dynamic else None
    torch.onnx.export(
        model,
        inputs,
        str(path),
        dynamo=False,
        opset_version=OPSET["ts"],
        input_names=names,
        dynamic_axes={n: {0: "batch"} for n in names or ()} or None,
    )


def _export_dynamo(model: nn.Module, inputs: Inputs, path: Path, dynamic: bool) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model,
        inputs,
        str(path),
        dynamo=True,
        opset_version=OPSET["dyn"],
        dynamic_shapes=tuple({0: batch} for _ in inputs) if dynamic else None,
        external_data=True,
        verbose=False,
    )


def _first(model: nn.Module) -> nn.Module:
    """Wrap a model to return the one tensor of a segmentation model's dictionary, or its output."""
    from torch import nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            result = self.model(x)
            out: Tensor = result["out"] if isinstance(result, dict) else result
            return out

    return First()


# ------------------------------------------------------------------------------------------ Keras and the onnx wheel


def _keras(name: str, exporter: str, path: Path, seed: int) -> list[list[int]]:
    import keras
    import numpy as np

    keras.utils.set_random_seed(seed)
    options = {"alpha": 0.35} if name == "MobileNetV2" else {}
    model = getattr(keras.applications, name)(weights=None, **options)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = layer.get_weights()
        kind = type(layer).__name__
        if kind == "BatchNormalization":  # gamma, beta, mean, variance; the first two may be missing
            spreads = [(0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
            if not layer.scale:
                del spreads[0]
            layer.set_weights([rng.uniform(*s, v.shape) for s, v in zip(spreads, values, strict=True)])
        elif kind != "Normalization":
            layer.set_weights([rng.normal(0, 0.1, v.shape) if v.ndim == 1 else v for v in values])
    shape = [1, *model.input_shape[1:]]
    # Statistics of a random batch; with others activations grow from block to block, and Softmax says 1 to one class.
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    image = [224 if n is None else n for n in shape[1:]]  # some take any size
    model(rng.normal(size=(2, *image)).astype(np.float32), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    if exporter == "keras":
        model(np.zeros([1, *image], np.float32))  # it wants to know the shapes of a call
        model.export(str(path), format="onnx", verbose=False)
    else:
        import tensorflow as tf
        import tf2onnx

        signature = [tf.TensorSpec([None, *shape[1:]], tf.float32, name="image")]
        call = tf.function(lambda image: model(image, training=False), input_signature=signature)
        tf2onnx.convert.from_function(call, input_signature=signature, opset=17, output_path=str(path))
    return [shape]


def _light(name: str, path: Path) -> list[list[int]]:
    """Return a model of the onnx wheel, with random weights instead of ConstantOfShape and equal values."""
    import math

    import numpy as np
    import onnx
    from onnx import numpy_helper

    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    proto = onnx.load(source)
    graph = proto.graph
    sizes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in sizes:
            kept.append(node)
            continue
        dims = sizes[node.input[0]].tolist()
        graph.initializer.add(name=node.output[0], data_type=onnx.TensorProto.FLOAT, dims=dims)
    nodes = onnx.GraphProto(node=kept)
    graph.ClearField("node")
    graph.node.extend(nodes.node)
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1 and tensor.name in sizes:
            values = sizes[tensor.name]
            if np.all(values == values.flat[0]):
                for field in ("raw_data", "float_data"):
                    tensor.ClearField(field)
    onnx.save(tests_module().fill(proto), path)
    weights = {t.name for t in graph.initializer}
    return [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input if v.name not in weights]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names or patterns, such as 'timm_*.ts'")
    parser.add_argument("--out", type=Path, default=Path(".zoo/models"))
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(e.name for e in catalogue()))
        return
    for entry in chosen(args.names):
        print(json.dumps({"name": entry.name, **build(entry, args.out / entry.name)}), flush=True)


if __name__ == "__main__":
    main()
