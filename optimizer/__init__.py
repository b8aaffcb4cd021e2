"""What decides: the study file, the loop, samplers, the front, export, and the command line."""
