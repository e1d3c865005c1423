"""From the records of an evaluation to a table, pictures and one HTML page."""
