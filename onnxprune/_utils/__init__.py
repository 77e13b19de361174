"""Helpers that know nothing of models: files, journals, processes, entry points, HTML, formatting."""
