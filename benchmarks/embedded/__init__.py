"""The embedded engine beside llama.cpp's server and vLLM, on the same weights: `python -m benchmarks.embedded`."""
