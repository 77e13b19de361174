"""An operator, a pass and a criterion for onnxprune. Entry points name them: see pyproject.toml."""
