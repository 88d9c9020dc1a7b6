"""What all else stands on: files, locks, signals, ranks, lists of values, statistics."""
