"""Files: one opener and one atomic writer, arrays, journals, locks."""
