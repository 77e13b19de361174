"""Readers of data, one file per kind of source."""
