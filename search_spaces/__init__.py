"""Arithmetic of the search: parameters of a trial to a recipe and back. No library that proposes, trains or stores."""
