"""Shapes of a graph: numbers and symbols for every dimension, conditions on sizes, faults of nodes."""
