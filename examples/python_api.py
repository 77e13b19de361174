"""Prune the digits network that ships to half its MACs through the Python API: stage by stage, then in one call.

python examples/python_api.py [MODEL.onnx [OUT.onnx]]
"""

from __future__ import annotations

import sys
from importlib import resources

import onnxprune as op


def main(source: str, target: str) -> None:
    """Analyze, score, plan, apply with proof, recover, evaluate, measure and save."""
    model = op.load(source)
    analysis = op.analyze(model)
    print(analysis, *analysis, *(f"{k.name}: locked, it {k.reason}" for k in analysis.locked), sep="\n")
    plan = op.plan(op.score(analysis, "dscore"), op.Target(macs=0.5), constraints=op.Constraints(protect=["first"]))
    pruned = op.apply(model, plan)  # strips and proves
    better = op.recover(model, pruned, plan, data="digits:train", images=300)
    print(plan, better, sep="\n")
    for step in (model, pruned, better):
        print(op.evaluate(step, "digits:test"))
    print(op.bench([model, better]))

    result = op.prune(source, target="macs=0.5", data="digits:train", images=300)  # the whole job
    print(f"MACs {result.before.macs:,} -> {result.after.macs:,}", result, sep="\n")
    result.save(target)


if __name__ == "__main__":
    shipped = resources.files("onnxprune.models") / "digits_cnn.onnx"
    with resources.as_file(shipped) as path:
        main(sys.argv[1] if len(sys.argv) > 1 else str(path), sys.argv[2] if len(sys.argv) > 2 else "small.onnx")
