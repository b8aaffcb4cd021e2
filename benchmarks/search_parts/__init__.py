"""The problems of search_quality.py."""
