"""The store: blobs, manifests, names, and the checks of all three."""
