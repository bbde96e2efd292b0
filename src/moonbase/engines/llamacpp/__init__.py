"""The `llamacpp` engine: any `llama-server`, by its address or as a supervised child process."""
