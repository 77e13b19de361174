"""Plans from scores and a budget: allocators, targets, constraints, curves, the sensitivity sweep."""
