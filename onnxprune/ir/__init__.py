"""Models in memory and on disk: reader, writer, graph checker, image layouts, symbolic sizes."""
