"""What every program of plainpacs starts with: the root command, settings, logging, signals."""
