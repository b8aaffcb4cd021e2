"""The parts of measuring.py: each module has ``table(family, ...)``, which gives the rows of one table."""
