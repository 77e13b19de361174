"""Tasks: metrics of outputs against targets, and distances from the outputs of the original."""
