"""Processes, threads and memory: parallel work, deadlines, signals, pauses of the garbage collector."""
