"""Wire formats: pure translations between JSON bodies and the nouns of `serve/job.py`. No I/O."""
