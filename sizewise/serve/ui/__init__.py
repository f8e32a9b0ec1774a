"""The web page: its files, and what it shows beyond what the public API tells."""
