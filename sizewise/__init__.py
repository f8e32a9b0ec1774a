"""sizewise finds, makes, runs and proves the smallest language model that does a given job."""

__version__ = "0.1.0"
