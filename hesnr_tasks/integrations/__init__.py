"""Beside a training run: what scores its checkpoints while it goes on."""
