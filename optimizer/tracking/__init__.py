"""A study told to an experiment tracker. It is read from the database, so a tracker can neither stop nor slow it."""
