#!/bin/sh
# Claude Code on this server: sets what it reads, and starts it with the arguments given.
# The model must have room for some 20,000 tokens of instructions: the default one has not. SMALL_MODEL may name
# another one for work in the background, which asks for the haiku model.
set -eu
base=${MOONSHOT_API_BASE:-http://127.0.0.1:8000/v1}
export ANTHROPIC_BASE_URL="${base%/v1}/anthropic"
export ANTHROPIC_AUTH_TOKEN="$MOONSHOT_API_KEY"
export ANTHROPIC_MODEL="${MODEL:-kimi-k2-0905-preview}"
export ANTHROPIC_DEFAULT_OPUS_MODEL="$ANTHROPIC_MODEL" ANTHROPIC_DEFAULT_SONNET_MODEL="$ANTHROPIC_MODEL"
export ANTHROPIC_DEFAULT_HAIKU_MODEL="${SMALL_MODEL:-$ANTHROPIC_MODEL}" CLAUDE_CODE_SUBAGENT_MODEL="$ANTHROPIC_MODEL"
exec "${CLAUDE:-claude}" "$@"
