"""From scores and a budget to a plan: allocators, targets, constraints, curves, the sensitivity sweep."""
