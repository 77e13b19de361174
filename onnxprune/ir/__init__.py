"""Models in memory and on disk: reading, writing, checking graphs, image layouts, symbolic sizes."""
