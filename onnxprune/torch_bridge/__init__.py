"""ONNX to PyTorch and back: the module trains, and the trained tensors return into the same graph.

    module = op.to_torch(model)          # a torch.fx.GraphModule with the weights as parameters
    ...                                  # your own training loop
    trained = op.write_back(module, model)

The only package that uses onnx2torch. Its converters are used where they serve; ours, a file per operator family, add
what it lacks (see `registry`).
"""

from __future__ import annotations

from onnxprune.errors import OnnxPruneError

try:
    import onnx2torch  # noqa: F401
    import torch  # noqa: F401
except (ImportError, RuntimeError) as err:  # torchvision built for another torch raises RuntimeError
    raise OnnxPruneError(
        f"training needs torch, torchvision and onnx2torch ({err})", fix="pip install 'onnxprune[train]'"
    ) from err

from onnxprune.torch_bridge.bridge import Binding as Binding
from onnxprune.torch_bridge.bridge import bindings as bindings
from onnxprune.torch_bridge.bridge import logits_of as logits_of
from onnxprune.torch_bridge.bridge import to_torch as to_torch
from onnxprune.torch_bridge.bridge import write_back as write_back
