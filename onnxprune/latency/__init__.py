"""Measured and predicted latency of models."""
