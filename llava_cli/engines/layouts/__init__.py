"""Checkpoints as they lie on disks, opened in one form: llava-hf's configuration and names.

llava-hf folders, checkpoints of the original LLaVA code with the tower inside or beside, a
projector or LoRA over its base, deltas; safetensors or torch's .bin. The PyTorch engine reads them
straight into memory, the converter into files. Opening reads headers only. Not here: the maps of
names (`llava_cli.models.tensor_names`), what llama.cpp can compute (`llava_convert`).
"""
