"""Comparisons: criteria, sparsity, two models; and their plots."""
