"""Training of LLaVA models: recipes, data, labels, the step loop, checkpoints and export.

Importing this package imports no torch; its modules do.
"""
