"""One training run: its directory, checkpoints, loop, hooks, and the machines it runs on."""
