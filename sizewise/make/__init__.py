"""Base x recipe -> smaller model: one file per method in `methods/`."""
