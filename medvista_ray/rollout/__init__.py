"""The agent loop: generate, parse, call the tool, observe; token-in token-out, over protocols only."""
