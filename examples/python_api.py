"""Prunes the digits network that ships to half its MACs and compares accuracy, through the Python API.

python examples/python_api.py [MODEL.onnx [OUT.onnx]]
"""

from __future__ import annotations

import sys
from importlib import resources

import onnxprune as op


def main(source: str, target: str) -> None:
    """Analyses, scores, plans, strips, verifies and saves."""
    model = op.load(source)
    groups = op.analyze(model)
    for group in groups:
        print(f"{group.name}: {group.channels} channels on {len(group.sites)} weight axes")
    for locked in groups.locked:
        print(f"{locked.name}: locked, it {locked.reason}")
    plan = op.plan(
        op.score(model, groups, "dscore"), op.Target(macs=0.5), constraints=op.Constraints(protect=["first"])
    )
    done = op.compile_plan(model, plan, analysis=groups)
    assert done.verification is not None
    print(f"MACs {done.before.macs:,} -> {done.after.macs:,}, difference {done.verification.max_relative:.1e}")
    data = op.load_data("digits")
    print(f"accuracy {op.evaluate(model, data).top1:.3f} -> {op.evaluate(done.model, data).top1:.3f}")
    op.save(done.model, target)


if __name__ == "__main__":
    shipped = resources.files("onnxprune.models") / "digits_cnn.onnx"
    with resources.as_file(shipped) as path:
        main(sys.argv[1] if len(sys.argv) > 1 else str(path), sys.argv[2] if len(sys.argv) > 2 else "small.onnx")
