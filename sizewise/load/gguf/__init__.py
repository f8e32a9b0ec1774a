"""GGUF files: read, checked before the engine sees them, and written."""
