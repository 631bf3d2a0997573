"""llava: ask a local model about pictures, and make such models.

This package is what a person runs: commands, images, models, engines. Conversion lives in
`llava_convert`, training in `llava_train`. Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
