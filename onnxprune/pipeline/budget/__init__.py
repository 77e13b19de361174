"""Models within a budget of accuracy: paths of plans, the search along them, whole frontiers."""
