"""Comparisons beside the main job: criteria, sparsity, two models; and their plots."""
