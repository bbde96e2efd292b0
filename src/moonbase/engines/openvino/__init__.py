"""OpenVINO GenAI in a supervised worker process (docs/architecture.md, engines)."""
