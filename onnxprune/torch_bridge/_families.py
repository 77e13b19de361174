"""Import of every converter family, which registers the converters."""

from onnxprune.torch_bridge import activation as activation
from onnxprune.torch_bridge import control_flow as control_flow
from onnxprune.torch_bridge import conv as conv
from onnxprune.torch_bridge import elementwise as elementwise
from onnxprune.torch_bridge import gather as gather
from onnxprune.torch_bridge import linear as linear
from onnxprune.torch_bridge import norm as norm
from onnxprune.torch_bridge import pad as pad
from onnxprune.torch_bridge import pool as pool
from onnxprune.torch_bridge import quantize as quantize
from onnxprune.torch_bridge import reduce as reduce
from onnxprune.torch_bridge import resize as resize
from onnxprune.torch_bridge import shape as shape
from onnxprune.torch_bridge import vision as vision
