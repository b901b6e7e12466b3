"""Advantages, losses and off-policy corrections in pure torch, one per file."""
