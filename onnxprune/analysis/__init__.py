"""Analysis of a graph: shapes, coupled channels and their groups, costs, layers and their weights."""
