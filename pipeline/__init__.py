"""Quantized parameter-efficient fine-tuning, compared reproducibly."""
