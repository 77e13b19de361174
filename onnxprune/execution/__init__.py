"""Execution of models on data: sessions, samples, metrics, calibration, statistics, timing."""
