"""A name becomes something runnable: store, pull, checkpoints, GGUF, runners; a task file becomes items."""
