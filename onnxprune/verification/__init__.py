"""Proof that a pruned model computes the same as its masked original.

`verify` compares all constants bit for bit and all nodes one by one, on inputs chosen by the checker, with the original
file; end-to-end runs of both models are the second line. It shares no code with the analysis or the strip pass.
"""

from onnxprune.verification._certificate import QUANTIZED as QUANTIZED
from onnxprune.verification._certificate import TOLERANCE as TOLERANCE
from onnxprune.verification._certificate import Verification as Verification
from onnxprune.verification._checker import verify as verify
from onnxprune.verification._compare import relative_difference as relative_difference
