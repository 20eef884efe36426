"""What `weft inspect` shows: a typed program as plain data (for --json), and that data as text."""
