"""One measure a module: ``rows(effort)`` measures, and yields the rows of the table."""
