"""One file, one method. The file's name registers it; the signature is its schema."""
