"""The HTTP service: the Python interface for a team, over one database. It keeps nothing that it could lose."""
