"""Runs of a model that criteria are computed from: masked, without blocks, backwards in PyTorch, layer by layer."""
