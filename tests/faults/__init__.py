"""``make faults``: faults that are really injected, and a table of what came of them."""
