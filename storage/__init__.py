"""What outlives a process: records, the study store, checkpoints on disk."""
