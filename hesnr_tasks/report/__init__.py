"""From lm-eval's result files to tables people read. Knows neither models nor trajectories."""
