"""What all else stands on: files, locks, signals, ranks, the terminal, statistics."""
