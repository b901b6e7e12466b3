"""Pure state machines of the asynchronous loop (admission, groups, sampler, health, timing) and the loop itself."""
