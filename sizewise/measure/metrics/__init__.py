"""One file, one metric. They never import one another."""
