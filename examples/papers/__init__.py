"""The three papers behind mergefront, replayed on models small enough to train here: ``make papers``."""
