"""Operator records. Importing the package registers all that ship; each family lives in a file of its own."""

from onnxprune.ops import attention as attention
from onnxprune.ops import concat as concat
from onnxprune.ops import conv as conv
from onnxprune.ops import elementwise as elementwise
from onnxprune.ops import fused as fused
from onnxprune.ops import gather as gather
from onnxprune.ops import integer as integer
from onnxprune.ops import layout as layout
from onnxprune.ops import matmul as matmul
from onnxprune.ops import norm as norm
from onnxprune.ops import pad as pad
from onnxprune.ops import pool as pool
from onnxprune.ops import quantize as quantize
from onnxprune.ops import recurrent as recurrent
from onnxprune.ops import reduce as reduce
from onnxprune.ops import reshape as reshape
from onnxprune.ops import resize as resize
from onnxprune.ops import scatter as scatter
from onnxprune.ops import shape_arithmetic as shape_arithmetic
from onnxprune.ops.labels import Choices as Choices
from onnxprune.ops.labels import LabelTable as LabelTable
from onnxprune.ops.record import OpSpec as OpSpec
from onnxprune.ops.record import all_ops as all_ops
from onnxprune.ops.record import find as find
from onnxprune.ops.record import guarded as guarded
from onnxprune.ops.record import register as register
