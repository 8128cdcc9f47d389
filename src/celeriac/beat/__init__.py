"""Beat: sends the entries that are due. Any number of beats may run."""
