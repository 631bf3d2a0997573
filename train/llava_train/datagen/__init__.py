"""Instruction data written by a text-only language model that sees a picture as symbols."""
