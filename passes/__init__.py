"""Graph-to-graph rewrites, one file each; the file name is the pass name on the command line."""

from onnxprune.passes.base import Pass as Pass
from onnxprune.passes.base import Pipeline as Pipeline
from onnxprune.passes.base import Rewritten as Rewritten
from onnxprune.passes.base import all_passes as all_passes
from onnxprune.passes.base import get as get
from onnxprune.passes.base import make as make
from onnxprune.passes.base import register as register
from onnxprune.passes.drop_zero_states import DropZeroStates as DropZeroStates
from onnxprune.passes.fold_scales import FoldScales as FoldScales
from onnxprune.passes.fold_shapes import FoldShapes as FoldShapes
from onnxprune.passes.fuse_batchnorm import FuseBatchnorm as FuseBatchnorm
from onnxprune.passes.insert_batchnorm import InsertBatchnorm as InsertBatchnorm
from onnxprune.passes.insert_masks import InsertMasks as InsertMasks
from onnxprune.passes.lift_constants import LiftConstants as LiftConstants
from onnxprune.passes.remove_blocks import RemoveBlocks as RemoveBlocks
from onnxprune.passes.remove_identity import RemoveIdentity as RemoveIdentity
from onnxprune.passes.slice_statistics import SliceStatistics as SliceStatistics
from onnxprune.passes.sparsify_weights import SparsifyWeights as SparsifyWeights
from onnxprune.passes.strip_channels import StripChannels as StripChannels
from onnxprune.passes.take_branches import TakeBranches as TakeBranches
from onnxprune.passes.unshare_constants import UnshareConstants as UnshareConstants
from onnxprune.passes.widen_floats import WidenFloats as WidenFloats

NORMALIZE = (
    LiftConstants(), RemoveIdentity(), DropZeroStates(), FoldShapes(), TakeBranches(), UnshareConstants(),
)  # fmt: skip
"""Passes that run before every analysis: weights lifted to initializers, shapes folded, small constants unshared."""
