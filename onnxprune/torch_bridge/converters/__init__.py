"""Converters from ONNX nodes to PyTorch modules, one file per operator family; importing the package registers all."""

from onnxprune.torch_bridge.converters import activation as activation
from onnxprune.torch_bridge.converters import control_flow as control_flow
from onnxprune.torch_bridge.converters import conv as conv
from onnxprune.torch_bridge.converters import elementwise as elementwise
from onnxprune.torch_bridge.converters import gather as gather
from onnxprune.torch_bridge.converters import linear as linear
from onnxprune.torch_bridge.converters import norm as norm
from onnxprune.torch_bridge.converters import pad as pad
from onnxprune.torch_bridge.converters import pool as pool
from onnxprune.torch_bridge.converters import quantize as quantize
from onnxprune.torch_bridge.converters import reduce as reduce
from onnxprune.torch_bridge.converters import resize as resize
from onnxprune.torch_bridge.converters import shape as shape
from onnxprune.torch_bridge.converters import vision as vision
