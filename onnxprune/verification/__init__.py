"""The proof that a pruned model computes what its masked original computes.

`verify` compares all constants bit for bit and all nodes one by one, on inputs of its own choice, with the original
file; whole runs of both models are the second line. It shares no code with the analysis or the strip pass.
"""

from onnxprune.verification._certificate import QUANTIZED as QUANTIZED
from onnxprune.verification._certificate import TOLERANCE as TOLERANCE
from onnxprune.verification._certificate import Verification as Verification
from onnxprune.verification._checker import verify as verify
from onnxprune.verification._compare import relative_difference as relative_difference
