"""Nouns only: references, requests, measurements, recipes, errors, units. No torch, no I/O."""
