"""llama.cpp through its C functions and its native server; runs in a child process."""
