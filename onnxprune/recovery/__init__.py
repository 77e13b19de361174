"""Recovery of accuracy without training: statistics and weights re-solved on calibration data."""
