"""Making the bundled model from nothing: `python -m llava_train.demo -o DIR`."""
