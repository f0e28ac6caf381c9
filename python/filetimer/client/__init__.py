"""The clients: what runs inside workers.  Standard library only, and little of it."""
