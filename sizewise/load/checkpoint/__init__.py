"""Hugging Face checkpoints: what a folder holds, and its model in torch."""
