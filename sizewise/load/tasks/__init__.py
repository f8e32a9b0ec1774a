"""Task files and their rows."""
