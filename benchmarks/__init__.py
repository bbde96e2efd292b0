"""One question per file. Run one with `python -m benchmarks.NAME`; results are in docs/benchmarks.md."""
