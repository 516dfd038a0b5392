"""The training loop and its parts: steps, schedules, optimisers, states, metrics."""
