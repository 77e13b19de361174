"""Accuracy recovered without training: statistics and weights solved for on calibration data."""
