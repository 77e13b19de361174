"""Subjects of the proof: cases that it must accept or reject, mutants of pruned models, wide precision."""
