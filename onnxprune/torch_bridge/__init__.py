"""Conversion from ONNX to PyTorch and back: the module trains, its tensors are written into the same graph.

    module = op.to_torch(model)          # a torch.fx.GraphModule with the weights as parameters
    ...                                  # your own training loop
    trained = op.write_back(module, model)

The only package that imports onnx2torch. It uses onnx2torch's converters where they suffice; its own converters, one
file per operator family, add the missing operators (see `registry`).
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

from onnxprune.torch_bridge._bridge import Binding as Binding
from onnxprune.torch_bridge._bridge import bindings as bindings
from onnxprune.torch_bridge._bridge import logits_of as logits_of
from onnxprune.torch_bridge._bridge import to_torch as to_torch
from onnxprune.torch_bridge._bridge import write_back as write_back
