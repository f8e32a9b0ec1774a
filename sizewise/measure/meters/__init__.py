"""One file, one meter. They never import one another."""
