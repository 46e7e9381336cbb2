"""What `malformed.py` tries: doors, their good input, the ways to damage it, and what is right to come of that."""
