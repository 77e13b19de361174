"""Public architectures without each of their residual blocks, and without half of them: removed and proved.

`make blocks` does the same for every structure.
"""

from __future__ import annotations

import pytest
from networks.residual import block_plans
from networks.structures import FOLDER, all_structures, analysed

from onnxprune.pipeline import compile_plan

SAMPLE = ("hf_vit.ts", "hf_llama.ts", "hf_gpt_neox.ts", "timm_mobilenetv3_small_050.ts", "timm_starnet_s050.ts")


def _cases() -> list[object]:
    names = [path.name.removesuffix(".onnx.xz") for path in all_structures()]
    return [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", _cases())
def test_every_block_and_half_of_them_are_removed_and_proved(name: str) -> None:
    analysis = analysed(FOLDER / f"{name}.onnx.xz")
    assert len(analysis.free_blocks) or name not in SAMPLE
    for plan in block_plans(analysis):
        done = compile_plan(analysis.source, plan, analysis=analysis)
        assert done.verification is not None
        assert done.after.params < done.before.params or done.after.macs < done.before.macs
        assert len(done.model.graph.nodes) < len(analysis.model.graph.nodes)
