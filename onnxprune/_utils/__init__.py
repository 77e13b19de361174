"""Helpers independent of models: files, journals, processes, entry points, HTML, formatting."""
