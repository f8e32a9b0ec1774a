"""One file, one engine. They never import one another."""
