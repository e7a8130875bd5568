"""The lm-eval tasks: settings, signature, registration, and everything that lm-eval asks of a task."""
