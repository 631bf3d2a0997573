"""Checkpoints in, GGUF or llava-hf folders out."""
