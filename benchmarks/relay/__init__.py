"""What a gateway costs between clients and an engine: Moonbase beside LiteLLM, sglang-router and vllm-router."""
